//! The YAML of `config.yaml`: one level of `key: scalar`, and lists of scalars. Anything else is refused, not misread.
//!
//! A crate for all of YAML has anchors, tags and merges, which no configuration of dictionaries uses and which let a small file grow.

use super::error::quoted;
use super::FormatError;

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// A scalar, without its quotes. What it means is the reader's to say.
    Scalar(String),
    /// A list of scalars.
    List(Vec<String>),
}

const FILE: &str = "the YAML file";

/// The keys and values of a file, in its order.
///
/// # Errors
///
/// [`FormatError::Unsupported`] for YAML of other kinds, [`FormatError::Corrupt`] for what is none, [`FormatError::Duplicate`].
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<(String, Value)>, FormatError> {
    let text = std::str::from_utf8(bytes).map_err(|_| FormatError::corrupt(FILE, "is no UTF-8"))?;
    let mut entries: Vec<(String, Value)> = Vec::new();
    // Whether a list may follow the last key.
    let mut open = false;
    for line in text.lines() {
        let line = without_comment(line).trim_end();
        let content = line.trim_start_matches(' ');
        if content.is_empty() || line == "---" {
            continue;
        }
        if let Some(item) = content.strip_prefix("- ").or((content == "-").then_some("")) {
            let (true, Some((_, value))) = (open, entries.last_mut()) else {
                return Err(FormatError::corrupt(FILE, "has a list without a key"));
            };
            let item = scalar(item.trim())?;
            match value {
                Value::List(items) => items.push(item),
                Value::Scalar(_) => *value = Value::List(vec![item]),
            }
            continue;
        }
        if content.len() != line.len() {
            return Err(FormatError::unsupported(format!("the line `{}`", quoted(line)), "is indented"));
        }
        let Some((key, value)) = content.split_once(':') else {
            return Err(FormatError::unsupported(format!("the line `{}`", quoted(line)), "is no `key: value`"));
        };
        let (key, value) = (scalar(key.trim())?, value.trim());
        if !value.is_empty() && !content[key_end(content)..].starts_with([' ', '\t']) {
            return Err(FormatError::unsupported(format!("the line `{}`", quoted(line)), "is no `key: value`"));
        }
        if entries.iter().any(|(other, _)| *other == key) {
            return Err(FormatError::duplicate(format!("key `{}`", quoted(&key))));
        }
        open = value.is_empty();
        let value = match value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(items) if items.trim().is_empty() => Value::List(Vec::new()),
            Some(items) => Value::List(items.split(',').map(|item| scalar(item.trim())).collect::<Result<_, _>>()?),
            None => Value::Scalar(scalar(value)?),
        };
        entries.push((key, value));
    }
    Ok(entries)
}

/// Where the first colon of a line ends.
fn key_end(line: &str) -> usize {
    line.find(':').map_or(line.len(), |colon| colon + 1)
}

/// The line up to a comment, which begins at a `#` after a space and outside of quotes.
fn without_comment(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in line.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '#' && before.is_whitespace() => return line.get(..at).unwrap_or(line),
            None if (c == '"' || c == '\'') && (before.is_whitespace() || before == '[') => quote = Some(c),
            _ => {}
        }
        before = c;
    }
    line
}

/// A scalar without its quotes.
fn scalar(text: &str) -> Result<String, FormatError> {
    for quote in ['"', '\''] {
        let Some(rest) = text.strip_prefix(quote) else { continue };
        return match rest.strip_suffix(quote) {
            Some(inner) if !inner.contains([quote, '\\']) => Ok(inner.into()),
            _ => Err(FormatError::unsupported(format!("the text `{}`", quoted(text)), "has an escape or no end")),
        };
    }
    match text.starts_with(['&', '*', '!', '|', '>', '{', '[', '%', '@', '`', '?']) {
        true => Err(FormatError::unsupported(format!("the value `{}`", quoted(text)), "is YAML of another kind")),
        false => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalars(pairs: &[(&str, &str)]) -> Vec<(String, Value)> {
        pairs.iter().map(|(key, value)| (key.to_string(), Value::Scalar(value.to_string()))).collect()
    }

    #[test]
    fn flat_files_are_read() {
        let text = "---\n# a comment\nmodel_name: \"google/gemma-2-2b\"  # another\nscan: 'a # b'\nurl: hf://a/b#c\n\nempty:\n";
        let wanted = [("model_name", "google/gemma-2-2b"), ("scan", "a # b"), ("url", "hf://a/b#c"), ("empty", "")];
        assert_eq!(read(text.as_bytes()).unwrap(), scalars(&wanted));
        let list = Value::List(vec!["hf://a".into(), "b".into()]);
        for text in
            ["transcoders:\n  - \"hf://a\"\n  - b\n", "transcoders:\n- hf://a\n- b", "transcoders: [hf://a, 'b']"]
        {
            assert_eq!(read(text.as_bytes()).unwrap(), [("transcoders".to_string(), list.clone())], "{text}");
        }
        assert_eq!(read(b"a: []").unwrap(), [("a".to_string(), Value::List(Vec::new()))]);
    }

    #[test]
    fn other_yaml_is_refused() {
        for (text, what) in [
            ("a:\n  b: c", "is indented"),
            ("a: &x 1", "another kind"),
            ("a: {b: c}", "another kind"),
            ("a: |\n  b", "another kind"),
            ("just text", "no `key: value`"),
            ("a:b", "no `key: value`"),
            ("- a", "without a key"),
            ("a: b\n- c", "without a key"),
            ("a: 1\na: 2", "twice"),
            ("a: \"b", "no end"),
            ("a: \"b\\n\"", "an escape"),
        ] {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
        assert!(read(b"a: \xff").unwrap_err().to_string().contains("UTF-8"));
    }
}
