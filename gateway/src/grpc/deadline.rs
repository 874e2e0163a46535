//! gRPC's deadline: header `grpc-timeout`, a number of at most eight digits and a unit.
use std::time::Duration;

use tonic::metadata::MetadataMap;

/// How long the client is going to wait.
pub fn of(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let timeout = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            of(&metadata)
        };
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("99999999M"), Some(Duration::from_secs(5_999_999_940)));
        assert_eq!(timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout("7n"), Some(Duration::from_nanos(7)));
        for odd in ["", "S", "-1S", "100000000S", "5x", "5"] {
            assert_eq!(timeout(odd), None, "{odd}");
        }
        assert_eq!(of(&MetadataMap::new()), None);
    }
}
