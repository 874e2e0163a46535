//! Rotary frequencies and the table of a step.

use crate::config::{Config, Yarn};

/// Angle per position of each channel pair, in f32 as in the published code.
pub(crate) struct Frequencies {
    /// Of layers without a compressor.
    pub(crate) plain: Vec<f32>,
    /// Of layers with one: another base, and YaRN.
    pub(crate) compressed: Vec<f32>,
}

impl Frequencies {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            plain: frequencies(config.rope_theta, config.rope_dim, None),
            compressed: frequencies(config.compress_rope_theta, config.rope_dim, config.yarn),
        }
    }
}

/// θ_i = base^(−2i/channels), slowed down by YaRN where a rotation is longer than the original context.
fn frequencies(base: f64, channels: usize, yarn: Option<Yarn>) -> Vec<f32> {
    let plain = |pair: usize| base.powf(-2.0 * pair as f64 / channels as f64);
    let Some(yarn) = yarn else {
        return (0..channels / 2).map(|pair| plain(pair) as f32).collect();
    };
    // the channel whose wave makes n rotations over the original context
    let channel = |rotations: f64| {
        let waves = yarn.original_positions as f64 / (2.0 * std::f64::consts::PI * rotations);
        channels as f64 * waves.ln() / (2.0 * base.ln())
    };
    let low = channel(yarn.beta_fast).floor().max(0.0);
    let high = channel(yarn.beta_slow).ceil().min(channels as f64 - 1.0);
    let span = if high == low { 0.001 } else { high - low };
    (0..channels / 2)
        .map(|pair| {
            let ramp = ((pair as f64 - low) / span).clamp(0.0, 1.0);
            (plain(pair) / yarn.factor * ramp + plain(pair) * (1.0 - ramp)) as f32
        })
        .collect()
}

/// Appends one row for each position: cosine and sine of each pair in turn.
pub(crate) fn append_table(
    frequencies: &[f32],
    positions: impl Iterator<Item = usize>,
    table: &mut Vec<f32>,
) {
    for position in positions {
        for &frequency in frequencies {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            table.extend([cos as f32, sin as f32]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: Yarn = Yarn { factor: 16.0, original_positions: 65536, beta_fast: 32.0, beta_slow: 1.0 };

    #[test]
    fn yarn_ramps_between_the_published_channels() {
        let plain = frequencies(160_000.0, 64, None);
        let yarn = frequencies(160_000.0, 64, Some(PUBLISHED));
        for pair in 0..32 {
            let ratio = plain[pair] / yarn[pair];
            match pair {
                0..=15 => assert_eq!(ratio, 1.0, "pair {pair}"),
                25.. => assert!((ratio - 16.0).abs() < 1e-4, "pair {pair}"),
                _ => assert!(ratio > 1.0 && ratio < 16.0, "pair {pair}"),
            }
        }
    }

    #[test]
    fn a_table_row_holds_cosine_and_sine_of_each_pair() {
        let mut table = Vec::new();
        append_table(&[1.0, 0.5], [0, 2].into_iter(), &mut table);
        let expected = [1.0, 0.0, 1.0, 0.0, 2f32.cos(), 2f32.sin(), 1f32.cos(), 1f32.sin()];
        for (found, expected) in table.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-7);
        }
        assert_eq!(table.len(), expected.len());
    }
}
