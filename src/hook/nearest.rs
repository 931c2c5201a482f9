//! What was meant by a name that no hook point has.

use super::presence::all_points;
use crate::{Config, Error};

/// Names of hook points are shorter than this. What comes after it in a mistyped name is not compared, because the time that a
/// comparison takes grows with the length.
const LONGEST_COMPARED: usize = 128;

/// The error for a name that no hook point has, with the nearest one of this model. A slip anywhere in a whole name counts as much
/// as an end that is nearly right behind a beginning that is not.
pub(crate) fn unknown(name: &str, config: &Config) -> Error {
    let ends = (0..=name.len().min(LONGEST_COMPARED)).rev();
    let compared = ends.filter(|end| name.is_char_boundary(*end)).map(|end| &name[..end]).next().unwrap_or("");
    let (before, end) = before_and_end(compared, config);
    let distance = |candidate: &String| {
        let (candidate_before, candidate_end) = before_and_end(candidate, config);
        let between_ends = 2 * edit_distance(end, candidate_end) + 1;
        (between_ends.min(edit_distance(compared, candidate)), edit_distance(&before, &candidate_before))
    };
    // The experts of a large mixture have ten thousand names that differ in their numbers only.
    let expert = named_expert(compared);
    let candidates = all_points(config).filter(|point| point.expert().is_none_or(|e| e == 0 || Some(e) == expert));
    let nearest = candidates.map(|point| point.to_string()).min_by_key(distance).unwrap_or_default();
    Error::UnknownHook { name: name.into(), nearest }
}

/// The expert's number in a name such as `blocks.0.mlp.experts.3.hook_pre`.
fn named_expert(name: &str) -> Option<usize> {
    let mut parts = name.split('.').skip_while(|part| !part.starts_with("expert"));
    parts.nth(1)?.parse().ok()
}

/// A name without its `hook_`, split in two: `blocks.3.attn.` and `pattern`, of the whole name; `blocks.3.` and `pattern`
/// of `pattern3`.
fn before_and_end<'a>(name: &'a str, config: &Config) -> (String, &'a str) {
    let (before, end) = name.rsplit_once('.').unwrap_or(("", name));
    if !before.is_empty() || end.starts_with("hook_") {
        return (before.into(), end.strip_prefix("hook_").unwrap_or(end));
    }
    let start = end.find(|c: char| c.is_ascii_digit()).unwrap_or(end.len());
    let (end, rest) = end.split_at(start);
    let layer: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (format!("{}.{}", config.stack.name(), if layer.is_empty() { "0" } else { &layer }), end)
}

/// Levenshtein's distance, in bytes: names are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
