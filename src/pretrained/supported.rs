//! [`SupportedArchitecture`]: an architecture that can be loaded, and what it was compared with.

use std::fmt;

use super::family::FAMILIES;

/// An architecture that can be loaded, and what it was compared with. Prints as a row of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct SupportedArchitecture {
    /// The name in `architectures` of `config.json`.
    pub architecture: &'static str,
    /// transformers' `model_type`.
    pub model_type: &'static str,
    /// The checkpoints on which it was compared.
    pub comparisons: Vec<Comparison>,
}

/// The comparison of one checkpoint with its reference: a row of `docs/conformance.md`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The folder in `tests/fixtures` or `tests/fixtures/transformers`.
    pub checkpoint: &'static str,
    /// What it was compared with.
    pub reference: Reference,
    /// The largest difference of logits, relative to the largest logit where that is above one.
    pub logits: f64,
    /// How many activations were compared.
    pub activations: usize,
    /// Their largest difference, likewise.
    pub difference: f64,
}

/// What a checkpoint was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// transformers 5.23: logits, streams and patterns.
    Transformers,
    /// TransformerLens 3.9: logits and all activations.
    TransformerLens,
}

impl SupportedArchitecture {
    /// The largest difference that any comparison found.
    pub fn largest_difference(&self) -> f64 {
        self.comparisons.iter().map(|it| it.logits.max(it.difference)).fold(0.0, f64::max)
    }
}

impl fmt::Display for SupportedArchitecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checkpoints: Vec<&str> = self.comparisons.iter().map(|it| it.checkpoint).collect();
        let has = |reference| self.comparisons.iter().any(|it| it.reference == reference);
        let reference = match (has(Reference::Transformers), has(Reference::TransformerLens)) {
            (true, true) => "both",
            (_, true) => "TransformerLens",
            _ => "transformers",
        };
        let (names, largest) = (checkpoints.join(", "), self.largest_difference());
        write!(f, "| {} | {} | {names} | {reference} | {largest:.0e} |", self.architecture, self.model_type)
    }
}

/// The page that the example `conformance` makes of the fixtures.
const PAGE: &str = include_str!("../../docs/conformance.md");

/// The architectures that can be loaded.
pub(crate) fn supported() -> Vec<SupportedArchitecture> {
    let rows: Vec<(&str, Comparison)> = PAGE.lines().filter_map(comparison).collect();
    let of = |architecture: &str| rows.iter().filter(|(of, _)| *of == architecture).map(|(_, row)| *row).collect();
    let supported = FAMILIES.iter().map(|family| {
        let architecture = family.architectures[0];
        SupportedArchitecture { architecture, model_type: family.model_type, comparisons: of(architecture) }
    });
    supported.collect()
}

/// A row of the page: its architecture, and what was found.
fn comparison(line: &'static str) -> Option<(&'static str, Comparison)> {
    let mut cells = line.strip_prefix("| ")?.split(" | ");
    let (checkpoint, architecture) = (cells.next()?, cells.next()?);
    let logits = cells.next()?.parse().ok()?;
    let (activations, difference) = cells.next()?.split_once(": ")?;
    let activations = activations.parse().ok()?;
    let of_transformers = cells.last()?.starts_with("transformers");
    let reference = if of_transformers { Reference::Transformers } else { Reference::TransformerLens };
    let difference = difference.parse().ok()?;
    Some((architecture, Comparison { checkpoint, reference, logits, activations, difference }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_was_compared() {
        for it in supported() {
            assert!(!it.comparisons.is_empty(), "{} has no row: run the example `conformance`", it.architecture);
            assert!(it.largest_difference() < 1e-4, "{it}");
            println!("{it}");
        }
    }
}
