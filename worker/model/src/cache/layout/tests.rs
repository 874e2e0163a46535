use serde_json::{Value, json};

use super::*;

/// A configuration with nano's sizes, changed.
fn config(changes: Value) -> Config {
    let text = include_str!("../../../../../tests/fixtures/models/nano/bf16/config.json");
    let mut config: Value = serde_json::from_str(text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    Config::parse(&config.to_string()).unwrap()
}

/// Attention of the published models: `before` layers, then `pairs` of ratios 4 and 128, then one of ratio 4.
fn published(before: &[usize], pairs: usize, hidden: usize) -> Config {
    let mut ratios = before.to_vec();
    ratios.extend([4, 128].repeat(pairs));
    ratios.push(4);
    let depth = ratios.len();
    config(json!({
        "num_hidden_layers": depth,
        "compress_ratios": ratios,
        "hidden_size": hidden,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "index_n_heads": 64,
        "index_head_dim": 128,
        "num_hash_layers": 0,
    }))
}

fn flash() -> Config {
    published(&[0, 0], 20, 4096)
}

fn pro() -> Config {
    published(&[128, 128], 29, 7168)
}

fn bytes_of(layout: &CacheLayout, wanted: impl Fn(&ClassKind) -> bool) -> usize {
    layout.classes.iter().filter(|class| wanted(&class.kind)).map(|class| class.bytes).sum()
}

/// §11 of the specification: bytes of entries and indexer keys per token of context; it rounds down.
#[test]
fn bytes_per_token_are_those_of_the_published_layouts() {
    let cases = [
        (flash(), KvFormat::Bf16, 6880.0),
        (flash(), KvFormat::Fp8, 3850.25),
        (pro(), KvFormat::Bf16, 9848.0),
        (pro(), KvFormat::Fp8, 5511.4375),
        (flash(), KvFormat::F32, 13760.0),
        (pro(), KvFormat::F32, 19696.0),
    ];
    for (config, format, expected) in cases {
        let layout = CacheLayout::new(&config, format).unwrap();
        let block = bytes_of(&layout, |kind| matches!(kind, ClassKind::Entries { .. }));
        assert_eq!(block as f64 / layout.block as f64, expected, "{format}");
        // pages round that up to their alignment, and that is what a longer context costs
        let grown = layout.state_bytes(1 << 20) - layout.state_bytes(1 << 19);
        assert_eq!(grown, (1 << 19) / 128 * block.next_multiple_of(PAGE_ALIGN), "{format}");
        let megabytes = |tokens: usize| layout.state_bytes(tokens) as f64 / 1e6;
        println!(
            "{} layers {format}: page {} bytes; 1k {:.1} MB, 128k {:.1} MB, 1M {:.1} MB; 256 tokens more at 128k: {:.1} MB",
            config.depth(),
            layout.page_bytes,
            megabytes(1 << 10),
            megabytes(1 << 17),
            megabytes(1 << 20),
            layout.step_bytes(1 << 17, 256) as f64 / 1e6 - megabytes(1 << 17),
        );
    }
}

/// §11: what a sequence takes however short its context is.
#[test]
fn fixed_bytes_are_those_of_the_published_layouts() {
    let layout = CacheLayout::new(&flash(), KvFormat::Fp8).unwrap();
    assert_eq!(bytes_of(&layout, |kind| matches!(kind, ClassKind::Window { .. })), 43 * 584);
    let open =
        |of: usize| bytes_of(&layout, |kind| matches!(kind, ClassKind::Open { ratio, .. } if *ratio == of));
    // values and gates of 512 channels, twice that and those of the indexer's 128 with overlap
    assert_eq!(open(128), 20 * 2 * 512 * 4);
    assert_eq!(open(4), 21 * 2 * (2 * 512 + 2 * 128) * 4);
    // 8 open tokens of ratio 4 and 127 of ratio 128 at worst, the window, and parts of pages
    let worst = (1..129).map(|tokens| layout.state_bytes((1 << 14) + tokens) - layout.state_bytes(1 << 14));
    let rows = 127 * open(128) + 4 * open(4) + 128 * 43 * 584;
    let worst = worst.max().unwrap();
    assert!(worst < rows + 8 * layout.page_bytes, "{worst} bytes for {rows} bytes of rows");
}

/// Every row of every part in a block has bytes of its own, inside its page.
#[test]
fn rows_of_a_class_never_overlap() {
    let sliding = json!({"compress_ratios": [0, 0, 0, 0, 0], "num_hidden_layers": 5});
    let odd = json!({"compress_ratios": [6, 4, 10, 4, 0], "num_hidden_layers": 5, "head_dim": 50, "index_head_dim": 33});
    for (config, format) in [config(json!({})), config(sliding), config(odd), flash()]
        .into_iter()
        .flat_map(|config| KvFormat::ALL.map(|format| (config.clone(), format)))
    {
        let mut config = config;
        config.add_draft_stage(2).unwrap();
        let layout = CacheLayout::new(&config, format).unwrap();
        let mut taken: Vec<Vec<(usize, usize)>> = vec![Vec::new(); layout.classes.len()];
        let parts = layout.layers.iter().flat_map(|layer| {
            let compressors = layer.main.iter().chain(&layer.index);
            compressors.flat_map(|parts| [parts.entries, parts.open]).chain([layer.window])
        });
        for part in parts.chain(layout.streams) {
            let pages: Vec<u32> = (0..layout.block as u32 + 1).collect();
            let rows = layout.rows(&part, &pages, 0);
            for row in 0..layout.block / part.ratio {
                let run = rows.run_from(row);
                assert_eq!(run.page as usize, layout.page_of(part.class, (row + part.shift) * part.ratio));
                let start = run.page as usize * layout.page_bytes + run.offset;
                let bytes = part.layout.bytes();
                assert!(run.offset + bytes <= layout.page_bytes, "{format} {part:?} row {row}");
                assert!(part.layout.format != RowFormat::F32 || run.offset.is_multiple_of(4));
                taken[part.class].push((start, start + bytes));
            }
        }
        for (class, mut taken) in taken.into_iter().enumerate() {
            taken.sort_unstable();
            assert!(
                taken.windows(2).all(|pair| pair[0].1 <= pair[1].0),
                "{format} {:?}",
                layout.classes[class]
            );
        }
    }
}

#[test]
fn a_block_is_a_multiple_of_every_ratio() {
    let block = |ratios: Value| {
        let depth = ratios.as_array().unwrap().len();
        let config = config(json!({"compress_ratios": ratios, "num_hidden_layers": depth}));
        CacheLayout::new(&config, KvFormat::F32).map(|layout| layout.block)
    };
    assert_eq!(block(json!([0, 4, 128])).unwrap(), 128);
    assert_eq!(block(json!([0, 8, 4])).unwrap(), 32);
    assert_eq!(block(json!([6, 4, 10])).unwrap(), 60);
    assert_eq!(block(json!([0])).unwrap(), 32);
    let error = block(json!([65535, 4])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.json: compress_ratios: the ratios have no common multiple up to 65536"
    );
}
