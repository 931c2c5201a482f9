//! The activations that are largest in a channel, or nearest to a direction.

use std::cmp::Ordering;

use super::Query;
use crate::{Error, Result, ShardId};

/// An activation that was asked for, and where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The number by which it was chosen: its entry in a channel, or its product with a direction.
    pub value: f32,
    /// Its shard.
    pub shard: ShardId,
    /// The row of the model's input in the shard.
    pub row: u32,
    /// The position in that row.
    pub position: u32,
    /// The token there.
    pub token: u32,
    /// The number of the document in the corpus.
    pub document: u64,
    /// Where the token lies in the document's text, in bytes; none of a BOS token and of a corpus that is tokenised already.
    pub text: Option<(u64, u64)>,
}

/// Which examples are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopOptions {
    /// How many, at most.
    pub count: usize,
    /// Whether each document gives its best example only.
    pub one_a_document: bool,
}

impl TopOptions {
    /// So many examples, each of another document.
    pub fn new(count: usize) -> Self {
        TopOptions { count, one_a_document: true }
    }

    /// Several examples may be of one document.
    pub fn any_document(mut self) -> Self {
        self.one_a_document = false;
        self
    }
}

/// How near an activation is to a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The product of both.
    Dot,
    /// The cosine of the angle between them; 0 of an activation that is 0.
    Cosine,
}

impl Query {
    /// The activations of a point that are largest in a channel (a neuron, or a feature of a dictionary), the largest first; of equal ones
    /// the first by shard, row and position. Reads the point's column of all shards.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a point that was not harvested, and a channel that it does not have; [`Error::Store`], [`Error::Engine`].
    pub fn top_examples(&self, column: &str, channel: usize, options: TopOptions) -> Result<Vec<Example>> {
        let mut best = Best::new(options);
        self.each(column, |block| {
            block.check(channel)?;
            (0..block.len()).for_each(|at| {
                best.offer(block.value(at, channel), block.document(at), |value| block.example(at, value))
            });
            Ok(())
        })?;
        Ok(best.examples)
    }

    /// The activations of a point that are nearest to a direction, the nearest first. A direction in a sparse point has an entry a feature.
    /// Sums are in double precision.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a direction of another width, or one that is 0 or not finite; those of [`Query::top_examples`].
    pub fn nearest(
        &self,
        column: &str,
        direction: &[f32],
        measure: Measure,
        options: TopOptions,
    ) -> Result<Vec<Example>> {
        let length = direction.iter().map(|&n| f64::from(n).powi(2)).sum::<f64>().sqrt();
        if !(length > 0.0 && length.is_finite()) {
            return Err(Error::Setting(format!(
                "a direction is finite and not 0, and this one has the length {length}"
            )));
        }
        let mut best = Best::new(options);
        self.each(column, |block| {
            if let Some(width) = block.width()
                && width != direction.len()
            {
                let found = direction.len();
                return Err(Error::Setting(format!("`{column}` has {width} channels, and the direction has {found}")));
            }
            for at in 0..block.len() {
                let (mut dot, mut square) = (0.0, 0.0);
                block.entries(at, |channel, value| {
                    let value = f64::from(value);
                    dot += value * f64::from(direction.get(channel).copied().unwrap_or(0.0));
                    square += value * value;
                });
                let near = match measure {
                    Measure::Dot => dot,
                    Measure::Cosine if square == 0.0 => 0.0,
                    Measure::Cosine => dot / (square.sqrt() * length),
                };
                best.offer(near as f32, block.document(at), |value| block.example(at, value));
            }
            Ok(())
        })?;
        Ok(best.examples)
    }
}

/// The best examples so far, the best first.
struct Best {
    options: TopOptions,
    examples: Vec<Example>,
}

impl Best {
    fn new(options: TopOptions) -> Self {
        Best { options, examples: Vec::new() }
    }

    /// Takes an example if it is good enough. They come in order, so one that equals an earlier one stands behind it.
    fn offer(&mut self, value: f32, document: u64, example: impl FnOnce(f32) -> Example) {
        let Best { options, examples } = self;
        let full = examples.len() >= options.count;
        if full && examples.last().is_none_or(|last| value.total_cmp(&last.value) != Ordering::Greater) {
            return;
        }
        if options.one_a_document
            && let Some(same) = examples.iter().position(|other| other.document == document)
        {
            if value.total_cmp(&examples[same].value) != Ordering::Greater {
                return;
            }
            examples.remove(same);
        }
        let place = examples.partition_point(|other| other.value.total_cmp(&value) != Ordering::Less);
        examples.insert(place, example(value));
        examples.truncate(options.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(options: TopOptions, offered: &[(f32, u64)]) -> Vec<(f32, u64)> {
        let mut best = Best::new(options);
        for &(value, document) in offered {
            best.offer(value, document, |value| Example {
                value,
                shard: ShardId(0),
                row: 0,
                position: 0,
                token: 0,
                document,
                text: None,
            });
        }
        best.examples.iter().map(|example| (example.value, example.document)).collect()
    }

    #[test]
    fn the_best_are_kept_in_order() {
        let offered = [(1.0, 0), (3.0, 1), (2.0, 1), (3.0, 2), (0.0, 3), (4.0, 0), (-1.0, 4)];
        assert_eq!(best(TopOptions::new(3), &offered), [(4.0, 0), (3.0, 1), (3.0, 2)]);
        assert_eq!(best(TopOptions::new(4).any_document(), &offered), [(4.0, 0), (3.0, 1), (3.0, 2), (2.0, 1)]);
        assert_eq!(best(TopOptions::new(9), &offered), [(4.0, 0), (3.0, 1), (3.0, 2), (0.0, 3), (-1.0, 4)]);
        assert_eq!(best(TopOptions::new(0), &offered), []);
    }
}
