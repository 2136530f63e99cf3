//! YAML as a tree of JSON, as far as a kubeconfig needs it: no aliases, no tags, a bounded depth.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Levels of nesting; a kubeconfig has about six.
const DEPTH: usize = 32;

/// A collection that is not closed yet.
enum Open {
    List(Vec<Value>),
    /// The members, and the key that waits for its value.
    Object(Map<String, Value>, Option<String>),
}

/// Reads one document. The error says what is wrong and where.
pub(super) fn read(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let value = match event {
            Event::Alias(_) => return Err(format!("line {}: aliases are not read", span.start.line())),
            Event::Scalar(text, style, ..) => scalar(&text, style),
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEPTH => {
                return Err(format!("line {}: more than {DEPTH} levels", span.start.line()));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Object(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Object(members, _)) => Value::Object(members),
                None => return Err("an end without a beginning".to_owned()),
            },
            _ => continue,
        };
        match open.last_mut() {
            // The first document is the one that counts.
            None => return Ok(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Object(members, key)) => match (key.take(), value) {
                (Some(key), value) => drop(members.insert(key, value)),
                (None, Value::String(name)) => *key = Some(name),
                (None, _) => return Err(format!("line {}: a key is not a text", span.start.line())),
            },
        }
    }
    Ok(Value::Null)
}

/// Numbers stay texts: no number is read from a kubeconfig, and a user may be called 007.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    match text {
        "true" if style == ScalarStyle::Plain => Value::Bool(true),
        "false" if style == ScalarStyle::Plain => Value::Bool(false),
        "" | "~" | "null" if style == ScalarStyle::Plain => Value::Null,
        text => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn block_and_flow_forms_and_json_are_read() {
        let block = "a: 1\nb:\n- c: true\n  d: 'true'\n- ~\ne: |\n  two\n  lines\n";
        let tree = json!({"a": "1", "b": [{"c": true, "d": "true"}, null], "e": "two\nlines\n"});
        assert_eq!(read(block), Ok(tree));
        assert_eq!(read(r#"{"a": [1, {"b": null}]}"#), Ok(json!({"a": ["1", {"b": null}]})));
    }

    #[test]
    fn aliases_and_depth_are_refused() {
        assert_eq!(read("a: &x 1\nb: *x\n").unwrap_err(), "line 2: aliases are not read");
        assert!(read(&"[".repeat(100)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text: String) {
            let _ = read(&text);
        }
    }
}
