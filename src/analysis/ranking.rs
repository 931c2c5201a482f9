//! [`Ranking`]: the rows of an attribution in the order of what they add.

use std::fmt;

use tch::Kind;

use super::attribution::Attribution;
use crate::component::Component;
use crate::Result;

/// Rows in the order of what they add; prints as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// What each is, and what it adds.
    pub rows: Vec<(Component, f64)>,
    /// All rows and constants together: the logit.
    pub total: f64,
}

impl Attribution {
    /// The `k` rows that add most, in descending order; of one position and batch row, which must be chosen where there are several.
    ///
    /// # Errors
    ///
    /// [`Error::SeveralPositions`](crate::Error::SeveralPositions).
    pub fn top(&self, k: usize) -> Result<Ranking> {
        self.ranked(k, true)
    }

    /// The `k` rows that add least, in ascending order.
    ///
    /// # Errors
    ///
    /// [`Error::SeveralPositions`](crate::Error::SeveralPositions).
    pub fn bottom(&self, k: usize) -> Result<Ranking> {
        self.ranked(k, false)
    }

    fn ranked(&self, k: usize, largest: bool) -> Result<Ranking> {
        let values = self.of_one_position("a ranking")?.f_squeeze_dim(-1)?.f_to_kind(Kind::Double)?; // [component]
        let k = i64::try_from(k).unwrap_or(i64::MAX).min(self.len() as i64);
        let (values, indices) = values.f_topk(k, 0, largest, true)?;
        let values = Vec::<f64>::try_from(values)?;
        let indices = Vec::<i64>::try_from(indices)?;
        let rows = indices.into_iter().map(|i| self.rows()[i as usize].clone()).zip(values).collect();
        Ok(Ranking { rows, total: self.whole_sum()?.f_double_value(&[0, 0])? })
    }
}

impl fmt::Display for Ranking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(row, _)| row.to_string().len()).max().unwrap_or(0);
        for (row, value) in &self.rows {
            writeln!(f, "{row:<width$}  {value:+8.3}")?;
        }
        write!(f, "{:<width$}  {:+8.3}", "all", self.total)
    }
}
