//! Rotary position embedding of interleaved pairs.

use belay_backend::Rotary;

/// Rotates the last `channels` of each head of one row; `table` = cosine and sine of each pair in turn.
pub(crate) fn rotate(row: &mut [f32], rotary: Rotary, table: &[f32]) {
    let head_width = row.len() / rotary.heads;
    for head in row.chunks_exact_mut(head_width) {
        let rotated = &mut head[head_width - rotary.channels..];
        for (pair, angle) in rotated.chunks_exact_mut(2).zip(table.chunks_exact(2)) {
            let (cos, sin) = (angle[0], if rotary.inverse { -angle[1] } else { angle[1] });
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cos - b * sin;
            pair[1] = a * sin + b * cos;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotating_back_gives_the_row_again_and_leaves_plain_channels_alone() {
        let angles = [0.3f32, 1.7];
        let table: Vec<f32> = angles.iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        let row: Vec<f32> = (0..12).map(|i| i as f32 - 5.0).collect();
        let mut turned = row.clone();
        let forth = Rotary { heads: 2, channels: 4, inverse: false };
        rotate(&mut turned, forth, &table);
        assert_eq!((&turned[..2], &turned[6..8]), (&row[..2], &row[6..8]));
        assert!((turned[2] - (row[2] * angles[0].cos() - row[3] * angles[0].sin())).abs() < 1e-6);
        rotate(&mut turned, Rotary { inverse: true, ..forth }, &table);
        assert!(turned.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
