//! Load as a number from 0 to 9, and as a colour.

/// Load of a copy compared to that of an average expert: 0 is nothing, [`EVEN`] is average, 9 is 2¼ times that or more.
pub type Heat = u8;

/// The heat of an average expert.
pub const EVEN: Heat = 4;

/// Hottest.
pub const MOST: Heat = 9;

/// Heat of `copies` copies that take `load` together, where `all` is the load of `experts` experts. `None` without any
/// load: then there is nothing to compare.
pub fn heat(load: u64, copies: u32, all: u64, experts: u32) -> Option<Heat> {
    if all == 0 || copies == 0 || experts == 0 {
        return None;
    }
    let (load, copies) = (u128::from(load), u128::from(copies));
    let (all, experts) = (u128::from(all), u128::from(experts));
    // rounded to the nearest
    let quarters = (2 * u128::from(EVEN) * load * experts + copies * all) / (2 * copies * all);
    Some(u8::try_from(quarters).unwrap_or(MOST).min(MOST))
}

/// Background and foreground for a heat, of the 256 colours of terminals: from dark blue over violet, blue and green to
/// yellow, each brighter than the one before it, so that people who see few colours see the order as well. Red is for
/// what is lost.
pub fn colours(heat: Heat) -> (u8, u8) {
    const BACKGROUND: [u8; 10] = [17, 53, 54, 25, 31, 36, 72, 77, 149, 226];
    const LIGHT: u8 = 255;
    const DARK: u8 = 16;
    let heat = heat.min(MOST);
    (BACKGROUND[usize::from(heat)], if heat < 5 { LIGHT } else { DARK })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_expert_is_even_and_its_two_copies_are_half_of_that() {
        assert_eq!(heat(100, 1, 1600, 16), Some(EVEN));
        assert_eq!(heat(50, 1, 1600, 16), Some(EVEN / 2));
        assert_eq!(heat(100, 2, 1600, 16), Some(EVEN / 2));
        assert_eq!((heat(0, 1, 1600, 16), heat(1600, 1, 1600, 16)), (Some(0), Some(MOST)));
        assert_eq!((heat(0, 1, 0, 16), heat(0, 0, 1600, 16)), (None, None));
        assert_eq!(heat(u64::MAX, u32::MAX, u64::MAX, u32::MAX), Some(EVEN));
    }

    /// Relative luminance of an entry of the 6 × 6 × 6 cube, 0 to 1.
    fn luminance(colour: u8) -> f64 {
        let level = |step: u8| f64::from([0u8, 95, 135, 175, 215, 255][usize::from(step)]) / 255.0;
        let linear =
            |value: f64| if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) };
        let (r, g, b) = match colour {
            16..232 => ((colour - 16) / 36, (colour - 16) / 6 % 6, (colour - 16) % 6),
            _ => (5, 5, 5),
        };
        0.2126 * linear(level(r)) + 0.7152 * linear(level(g)) + 0.0722 * linear(level(b))
    }

    #[test]
    fn hotter_is_brighter_and_marks_stand_out() {
        for heat in 0..=MOST {
            let (background, foreground) = colours(heat);
            if heat > 0 {
                assert!(luminance(background) > luminance(colours(heat - 1).0), "heat {heat}");
            }
            let (a, b) = (luminance(background), luminance(foreground));
            let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
            assert!(contrast >= 3.0, "heat {heat}: contrast {contrast:.1}");
        }
    }
}
