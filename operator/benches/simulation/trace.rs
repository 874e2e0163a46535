//! Requests over time: made up by seed, or read from a file.
use std::{fmt::Write as _, fs, path::Path};

use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// Seconds from the beginning.
    pub arrival: f64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

/// Requests in the order of their arrival.
#[derive(Clone, Debug)]
pub struct Trace {
    pub name: String,
    /// How long it lasts.
    pub seconds: f64,
    pub requests: Vec<Request>,
}

const HEADER: &str = "arrival_seconds,prompt_tokens,output_tokens";

impl Trace {
    /// Reads a recorded trace: CSV with the columns arrival_seconds, prompt_tokens and output_tokens.
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(HEADER), "{}: the first line", path.display());
        let mut requests: Vec<Request> = lines
            .map(|line| {
                let mut fields = line.split(',');
                let mut field = || fields.next().unwrap_or_else(|| panic!("{}: {line}", path.display()));
                Request {
                    arrival: field().parse().unwrap(),
                    prompt_tokens: field().parse().unwrap(),
                    output_tokens: field().parse().unwrap(),
                }
            })
            .collect();
        requests.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
        let seconds = requests.last().map_or(0.0, |request| request.arrival);
        Self { name: path.file_stem().unwrap().display().to_string(), seconds, requests }
    }

    /// As if so many of the same service were one: each request comes `times` times, within `SPREAD` seconds.
    pub fn times(&self, times: u32) -> Self {
        const SPREAD: f64 = 10.0;
        // the golden ratio: evenly spread, however many there are, and without a pattern from one to the next
        const GOLDEN: f64 = 0.618_033_988_749_895;
        let again = |(number, request): (usize, &Request)| {
            let request = *request;
            (0..times).map(move |copy| {
                let place = ((number as f64) * f64::from(times) + f64::from(copy)) * GOLDEN;
                let later = if copy == 0 { 0.0 } else { place.fract() * SPREAD };
                Request { arrival: request.arrival + later, ..request }
            })
        };
        let mut requests: Vec<Request> = self.requests.iter().enumerate().flat_map(again).collect();
        requests.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
        Self { name: format!("{} × {times}", self.name), seconds: self.seconds, requests }
    }

    /// The same as a file.
    pub fn csv(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for request in &self.requests {
            let (prompt, output) = (request.prompt_tokens, request.output_tokens);
            writeln!(text, "{:.3},{prompt},{output}", request.arrival).unwrap();
        }
        text
    }

    /// Arrivals by chance, so many a second as `rate` says of each second.
    pub fn poisson(name: &str, seed: u128, seconds: u32, rate: impl Fn(f64) -> f64) -> Self {
        let mut random = Random::new(seed);
        let mut requests = vec![];
        for second in 0..seconds {
            let rate = rate(f64::from(second));
            let mut at = random.exponential(rate);
            while at < 1.0 {
                requests.push(random.request(f64::from(second) + at));
                at += random.exponential(rate);
            }
        }
        Self { name: name.to_owned(), seconds: f64::from(seconds), requests }
    }

    /// Arrivals that bring others after them (a Hawkes process): each by itself, at `base` a second, starts a family, in which
    /// each member has `children` others on average, after `delay` seconds on average.
    pub fn hawkes(name: &str, seed: u128, seconds: u32, base: f64, children: f64, delay: f64) -> Self {
        let mut random = Random::new(seed);
        let end = f64::from(seconds);
        let mut to_visit = vec![];
        let mut at = random.exponential(base);
        while at < end {
            to_visit.push(at);
            at += random.exponential(base);
        }
        let mut arrivals = vec![];
        while let Some(parent) = to_visit.pop() {
            arrivals.push(parent);
            // as many as a Poisson process of that rate has in a unit of time
            let mut count = random.exponential(children);
            while count < 1.0 {
                let child = parent + random.exponential(1.0 / delay);
                if child < end {
                    to_visit.push(child);
                }
                count += random.exponential(children);
            }
        }
        arrivals.sort_by(f64::total_cmp);
        let requests = arrivals.into_iter().map(|at| random.request(at)).collect();
        Self { name: name.to_owned(), seconds: end, requests }
    }
}

struct Random(Pcg64Mcg);

impl Random {
    fn new(seed: u128) -> Self {
        Self(Pcg64Mcg::new(seed))
    }

    /// Above 0, at most 1.
    fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, rate: f64) -> f64 {
        -self.uniform().ln() / rate
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Lengths are spread as those of chats are: many short, some long.
    fn request(&mut self, arrival: f64) -> Request {
        let mut length = |median: f64, spread: f64, most: f64| {
            (median * (spread * self.normal()).exp()).clamp(1.0, most) as u32
        };
        Request {
            arrival,
            prompt_tokens: length(350.0, 0.8, 8000.0),
            output_tokens: length(150.0, 0.7, 2000.0),
        }
    }
}

/// The recorded traces of the fixtures, and as if four of those services were one.
pub fn recorded() -> Vec<Trace> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/traces");
    ["azure-2023-conversation", "azure-2023-code"]
        .iter()
        .map(|name| Trace::read(&dir.join(format!("{name}.csv"))))
        .flat_map(|trace| [trace.times(4), trace])
        .collect()
}

/// The made-up traces. A second in which `rate` is 4 brings about as much as one group can do.
pub fn synthetic() -> Vec<Trace> {
    let hour = 3600;
    let day = f64::from(4 * hour);
    vec![
        Trace::poisson("steady", 1, 2 * hour, |_| 14.0),
        Trace::poisson("diurnal", 2, 4 * hour, move |t| {
            16.0 - 14.0 * (std::f64::consts::TAU * t / day).cos()
        }),
        Trace::poisson("steps", 3, 2 * hour + hour / 2, |t| {
            [4.0, 24.0, 8.0, 32.0, 4.0][(t / 1800.0) as usize]
        }),
        Trace::poisson("spikes", 4, 2 * hour, |t| {
            if t % 900.0 >= 600.0 && t % 900.0 < 660.0 { 30.0 } else { 6.0 }
        }),
        herd(),
        Trace::poisson("bursts", 6, 2 * hour, |t| if t % 360.0 < 120.0 { 20.0 } else { 1.0 }),
        Trace::hawkes("hawkes", 7, 2 * hour, 1.0, 0.9, 30.0),
    ]
}

/// Nobody for ten minutes, then everybody at once.
pub fn herd() -> Trace {
    Trace::poisson("herd from zero", 5, 2400, |t| match t as u32 {
        0..600 => 0.0001,
        600..605 => 60.0,
        _ => 4.0,
    })
}
