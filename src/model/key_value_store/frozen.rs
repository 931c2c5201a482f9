//! [`Frozen`]: columns of a store that are not written any more.

use std::sync::Arc;

use tch::Tensor;

use crate::Result;

/// Columns that are not written any more, so that several stores and several rows of a batch look at the same memory.
///
/// Where the batch has more rows than the columns, each row of the columns is that of as many rows of the batch in turn.
#[derive(Debug)]
pub(super) struct Frozen {
    /// `[row, head, column, width]` each.
    pub(super) parts: Vec<Tensor>,
    /// Keeps the store whose memory it is from writing there.
    pub(super) sharing: Arc<()>,
}

impl Clone for Frozen {
    /// Another handle on the same memory.
    fn clone(&self) -> Self {
        let parts = self.parts.iter().map(Tensor::shallow_clone).collect();
        Frozen { parts, sharing: Arc::clone(&self.sharing) }
    }
}

impl Frozen {
    pub(super) fn rows(&self) -> usize {
        self.parts[0].size()[0] as usize
    }

    pub(super) fn columns(&self) -> usize {
        self.parts[0].size()[2] as usize
    }

    /// The columns of these rows, which are its own: shared by rows that are the same in turn, and copies unless all are meant.
    pub(super) fn chosen(&self, rows: &[usize]) -> Result<Self> {
        let chosen: Vec<usize> = rows.iter().copied().step_by(repeats(rows)).collect();
        if chosen.iter().copied().eq(0..self.rows()) {
            return Ok(self.clone());
        }
        let numbers: Vec<i64> = chosen.into_iter().map(|row| row as i64).collect();
        let index = Tensor::f_from_slice(&numbers)?.f_to_device(self.parts[0].device())?;
        let parts = self.parts.iter().map(|x| Ok(x.f_index_select(0, &index)?)).collect::<Result<_>>()?;
        Ok(Frozen { parts, sharing: Arc::new(()) })
    }
}

/// The largest number of times in turn that each row is named: 2 for `[0, 0, 1, 1, 1, 1]`.
pub(super) fn repeats(rows: &[usize]) -> usize {
    let mut divisor = 0;
    for run in rows.chunk_by(|a, b| a == b) {
        let (mut a, mut b) = (divisor, run.len());
        while b > 0 {
            (a, b) = (b, a % b);
        }
        divisor = a;
    }
    divisor.max(1)
}

/// `[row, head, column, width]` for each row of the batch: `[batch, head, column, width]`.
pub(super) fn for_each_row(x: &Tensor, batch: usize) -> Result<Tensor> {
    let size = x.size();
    let batch = batch as i64;
    if size[0] == batch {
        return Ok(x.shallow_clone());
    }
    let grouped = x.f_unsqueeze(1)?.f_expand([size[0], batch / size[0], size[1], size[2], size[3]], false)?;
    Ok(grouped.f_reshape([batch, size[1], size[2], size[3]])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_repeat_in_turn_are_found() {
        let cases: [(&[usize], usize); 7] = [
            (&[0, 0, 0, 0], 4),
            (&[0, 0, 1, 1, 1, 1], 2),
            (&[0, 1, 0, 1], 1),
            (&[0, 0, 0, 1, 1], 1),
            (&[2, 2, 0, 0, 2, 2], 2),
            (&[3], 1),
            (&[], 1),
        ];
        for (rows, expected) in cases {
            assert_eq!(repeats(rows), expected, "{rows:?}");
        }
    }
}
