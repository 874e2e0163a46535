//! Kubernetes quantities, exactly: pure.
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Billionths: the smallest part that a quantity can name.
const NANO: i128 = 1_000_000_000;

/// Billionths of one in a quantity. What is finer is rounded up, as the API server does. `None`: it is none.
pub fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator) = scale(suffix)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') {
        return None;
    }
    // as one whole number over a power of ten
    let digits: i128 = [whole, part].concat().parse().ok()?;
    let over = 10i128.checked_pow(u32::try_from(part.len()).ok()?)?.checked_mul(denominator)?;
    let value = digits.checked_mul(numerator)?.checked_mul(NANO)?;
    Some(sign * (value / over + i128::from(value % over != 0)))
}

/// A fraction that a suffix multiplies with.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1i128 << (10 * power), 1));
    let decimal = |power: u32| Some((10i128.pow(power), 1));
    match suffix {
        "n" => Some((1, NANO)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "" => Some((1, 1)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

/// What the scheduler counts of a resource: thousandths of a processor, whole ones of everything else, rounded up.
pub fn counted(resource: &str, nanos: i128) -> i128 {
    let unit = if resource == "cpu" { NANO / 1000 } else { NANO };
    nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0)
}

/// Whole ones, for what is counted in bytes. `None`: it is none, or too many.
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    u64::try_from(counted("memory", nanos(quantity)?)).ok()
}

/// A counted amount for people.
pub fn words(resource: &str, counted: i128) -> String {
    match resource {
        "cpu" if counted % 1000 == 0 => (counted / 1000).to_string(),
        "cpu" => format!("{counted}m"),
        "memory" | "ephemeral-storage" => {
            u64::try_from(counted).map_or_else(|_| counted.to_string(), crate::picture::units::bytes)
        }
        _ => counted.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(resource: &str, text: &str) -> Option<i128> {
        nanos(&Quantity(text.to_owned())).map(|nanos| counted(resource, nanos))
    }

    #[test]
    fn quantities_as_the_scheduler_counts_them() {
        for (resource, text, expected) in [
            ("cpu", "2", 2000),
            ("cpu", "100m", 100),
            ("cpu", "0.1", 100),
            ("cpu", "1.0005", 1001),
            ("cpu", "1u", 1),
            ("memory", "8Gi", 8 << 30),
            ("memory", "1.5Gi", 3 << 29),
            ("memory", "1500M", 1_500_000_000),
            ("memory", "12e3", 12_000),
            ("memory", "1E3", 1000),
            ("memory", "1E", 1_000_000_000_000_000_000),
            ("memory", "128974848000m", 128_974_848),
            ("huawei.com/Ascend910", "8", 8),
            ("pods", "110", 110),
            ("memory", "-1Ki", -1024),
        ] {
            assert_eq!(of(resource, text), Some(expected), "{text}");
        }
        for wrong in ["", ".", "1.2.3", "8GB", "x", "1e", "9e99999"] {
            assert_eq!(of("memory", wrong), None, "{wrong}");
        }
    }

    #[test]
    fn amounts_for_people() {
        assert_eq!(words("cpu", 2000), "2");
        assert_eq!(words("cpu", 1500), "1500m");
        assert_eq!(words("memory", 3 << 29), "1.5 GiB");
        assert_eq!(words("huawei.com/Ascend910", 8), "8");
    }
}
