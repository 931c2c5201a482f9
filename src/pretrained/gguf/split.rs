//! GGUF files that hold one model in parts: `NAME-00001-of-00003.gguf`, ….

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Parts have numbers of so many digits.
const DIGITS: usize = 5;
/// No model has more parts.
const MOST: usize = 9999;

/// The name of a part, its number and how many there are.
fn part(name: &str) -> Option<(&str, usize, usize)> {
    let (stem, extension) = name.rsplit_once('.')?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let read = |digits: &str| {
        let is_number = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<usize>().ok().filter(|number| is_number && (1..=MOST).contains(number))
    };
    let (number, count) = (read(number)?, read(count)?);
    (extension.eq_ignore_ascii_case("gguf") && number <= count).then_some((stem, number, count))
}

/// The names of all parts of the model that a file of this name belongs to, in order: its own, where it is no part.
pub(in crate::pretrained) fn names_of_parts(name: &str) -> Vec<String> {
    match part(name) {
        Some((stem, _, count)) => (1..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}.gguf")).collect(),
        None => vec![name.into()],
    }
}

/// The parts of the model that a file belongs to, in order.
///
/// # Errors
///
/// [`Error::Malformed`] naming a part that is not there.
pub(super) fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parts: Vec<PathBuf> = names_of_parts(&name).into_iter().map(|part| path.with_file_name(part)).collect();
    match parts.iter().find(|part| !part.is_file()) {
        Some(missing) if parts.len() > 1 => {
            let (count, missing) = (parts.len(), missing.file_name().unwrap_or_default().to_string_lossy());
            Err(Error::malformed(path, format!("it is one of {count} parts, and `{missing}` is not beside it")))
        }
        _ => Ok(parts),
    }
}

/// One name for each model of these files: without further parts, and without what only images go through.
pub(in crate::pretrained) fn models<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let is_gguf = |name: &&str| name.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case("gguf"));
    let is_model = |name: &&str| {
        let file = name.rsplit('/').next().unwrap_or(name);
        !file.starts_with("mmproj") && part(name).is_none_or(|(_, number, _)| number == 1)
    };
    let mut models: Vec<String> = names.filter(is_gguf).filter(is_model).map(String::from).collect();
    models.sort();
    models
}

/// These names in a sentence.
pub(in crate::pretrained) fn listed(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_known_by_their_names() {
        assert_eq!(names_of_parts("m-00002-of-00003.gguf").len(), 3);
        assert_eq!(names_of_parts("d/m-00002-of-00002.gguf")[0], "d/m-00001-of-00002.gguf");
        for whole in
            ["m.gguf", "m-1-of-2.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-00001-of-00002.bin"]
        {
            assert_eq!(names_of_parts(whole), [whole]);
        }
        let names =
            ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "a.GGUF", "mmproj-a.gguf", "x/mmproj.gguf", "c.bin"];
        assert_eq!(models(names.into_iter()), ["a.GGUF", "b-00001-of-00002.gguf"]);
    }
}
