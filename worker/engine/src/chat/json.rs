//! JSON as the format wants it: the way Python's `json.dumps(value, ensure_ascii=False)` writes it.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::Formatter;

/// One line, `", "` and `": "` between parts, keys in their order, characters outside ASCII as they are.
pub fn dumps(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Python);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        // Writing a `Value` into memory cannot fail; its own text is the same JSON with other spaces.
        Err(_) => value.to_string(),
    }
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(repr(value).as_bytes())
    }
}

fn separate<W: ?Sized + io::Write>(writer: &mut W, first: bool) -> io::Result<()> {
    if first { Ok(()) } else { writer.write_all(b", ") }
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent of at least two digits
/// below 1e-4 and from 1e16 on.
fn repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_looks_like_pythons() {
        let value: Value = serde_json::from_str(
            r#"{"b":[1,2.0,-0.5,1e16,1e-5,123456.75,0.0001,1.5e300],"a":{"x":null,"é":"\"\\\n\u0001\u007f¡"},"e":[],"o":{}}"#,
        )
        .unwrap();
        assert_eq!(
            dumps(&value),
            "{\"b\": [1, 2.0, -0.5, 1e+16, 1e-05, 123456.75, 0.0001, 1.5e+300], \
             \"a\": {\"x\": null, \"é\": \"\\\"\\\\\\n\\u0001\u{7f}¡\"}, \"e\": [], \"o\": {}}"
        );
    }
}
