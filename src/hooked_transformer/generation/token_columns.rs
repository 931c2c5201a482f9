//! [`TokenColumns`]: the tokens of all rows of a generation, column by column.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::text::input::Tokens;
use crate::Result;

/// The tokens of all rows of a generation. A row has padding where its prompt is shorter than others, and after its end.
#[derive(Clone, Debug)]
pub(super) struct TokenColumns {
    /// The tokens of each row, and whether each is real.
    rows: Vec<Vec<(i64, bool)>>,
}

impl TokenColumns {
    /// The columns of some tokens.
    pub(super) fn new(tokens: &Tokens) -> Result<Self> {
        let ids = Vec::<Vec<i64>>::try_from(tokens.ids.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?)?;
        let real = match &tokens.mask {
            Some(mask) => Vec::<Vec<bool>>::try_from(mask.f_to_device(Device::Cpu)?.f_to_kind(Kind::Bool)?)?,
            None => ids.iter().map(|row| vec![true; row.len()]).collect(),
        };
        Ok(TokenColumns {
            rows: ids.into_iter().zip(real).map(|(ids, real)| ids.into_iter().zip(real).collect()).collect(),
        })
    }

    /// How many columns there are.
    pub(super) fn len(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// These rows, each as often as it is named.
    pub(super) fn chosen(&self, rows: &[usize]) -> Self {
        TokenColumns { rows: rows.iter().map(|row| self.rows[*row].clone()).collect() }
    }

    /// How many rows there are.
    pub(super) fn n_rows(&self) -> usize {
        self.rows.len()
    }

    /// These columns, and those of others behind them.
    pub(super) fn followed_by(mut self, others: TokenColumns) -> Self {
        for (row, more) in self.rows.iter_mut().zip(others.rows) {
            row.extend(more);
        }
        self
    }

    /// Adds one column: the token of each row, or padding where a row has ended.
    pub(super) fn push(&mut self, tokens: &[Option<i64>]) {
        for (row, token) in self.rows.iter_mut().zip(tokens) {
            row.push((token.unwrap_or(0), token.is_some()));
        }
    }

    /// Drops all columns from `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        self.rows.iter_mut().for_each(|row| row.truncate(len));
    }

    /// The real tokens of each row.
    pub(super) fn ids(&self) -> Vec<Vec<i64>> {
        let real = |row: &Vec<(i64, bool)>| row.iter().filter(|(_, real)| *real).map(|(id, _)| *id).collect();
        self.rows.iter().map(real).collect()
    }

    /// The last column of each row that is no padding.
    pub(super) fn last(&self) -> Vec<i64> {
        let last = |row: &Vec<(i64, bool)>| row.iter().rposition(|(_, real)| *real).unwrap_or(0) as i64;
        self.rows.iter().map(last).collect()
    }

    /// Some columns as tensors.
    pub(super) fn tokens(&self, columns: Range<usize>) -> Result<Tokens> {
        let shape = [self.rows.len() as i64, columns.len() as i64];
        let entries = || self.rows.iter().flat_map(|row| &row[columns.clone()]);
        let ids: Vec<i64> = entries().map(|(id, _)| *id).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_view(shape)?;
        let real: Vec<bool> = entries().map(|(_, real)| *real).collect();
        let mask = match real.contains(&false) {
            true => Some(Tensor::f_from_slice(&real)?.f_view(shape)?),
            false => None,
        };
        Ok(Tokens { ids, mask, types: None })
    }
}
