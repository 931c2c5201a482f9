//! [`Part`]: chosen entries of a tensor, to be written to.

use tch::Tensor;

use crate::Result;

/// Chosen entries of a tensor: along each dimension some, their product taken.
#[derive(Debug)]
pub(crate) struct Part {
    picks: Vec<Pick>,
}

/// What is chosen along one dimension.
#[derive(Debug)]
pub(crate) struct Pick {
    choice: Choice,
    /// One entry, whose dimension the part does not have.
    dropped: bool,
}

#[derive(Debug)]
enum Choice {
    Range {
        start: i64,
        step: i64,
        len: i64,
    },
    List(Vec<i64>),
    /// One for each that is chosen along the first dimension.
    PerRow(Vec<i64>),
}

impl Pick {
    pub(crate) fn all(len: i64) -> Self {
        Pick { choice: Choice::Range { start: 0, step: 1, len }, dropped: false }
    }

    /// These indices, none negative; one of them where the dimension is dropped.
    pub(crate) fn list(indices: Vec<i64>, dropped: bool) -> Self {
        let step = match indices.as_slice() {
            [first, second, ..] => second - first,
            _ => 1,
        };
        let even = step >= 1 && indices.windows(2).all(|pair| pair[1] - pair[0] == step);
        let choice = match (even, indices.first()) {
            (true, Some(start)) => Choice::Range { start: *start, step, len: indices.len() as i64 },
            _ => Choice::List(indices),
        };
        Pick { choice, dropped }
    }

    /// Each of these indices for one row.
    pub(crate) fn per_row(indices: Vec<i64>, dropped: bool) -> Self {
        Pick { choice: Choice::PerRow(indices), dropped }
    }

    fn len(&self) -> i64 {
        match &self.choice {
            Choice::Range { len, .. } => *len,
            Choice::List(indices) => indices.len() as i64,
            Choice::PerRow(_) => 1,
        }
    }
}

impl Part {
    pub(crate) fn new(picks: Vec<Pick>) -> Self {
        Part { picks }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.picks.iter().any(|pick| pick.len() == 0)
    }

    /// How many dimensions behind one are not dropped.
    pub(crate) fn kept_behind(&self, dim: usize) -> usize {
        self.picks.iter().skip(dim + 1).filter(|pick| !pick.dropped).count()
    }

    /// How many entries are chosen along each dimension of the tensor.
    pub(crate) fn lens(&self) -> Vec<i64> {
        self.picks.iter().map(Pick::len).collect()
    }

    /// The shape of the part: without the dimensions that are dropped.
    pub(crate) fn shape(&self) -> Vec<i64> {
        self.picks.iter().filter(|pick| !pick.dropped).map(Pick::len).collect()
    }

    /// Puts what `change` makes of the chosen entries in their place, in `tensor`'s own memory. `change` gets and returns as many
    /// dimensions as the tensor has.
    pub(crate) fn write(&self, tensor: &Tensor, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<()> {
        match self.view(tensor)? {
            Some(mut view) => {
                let changed = change(&view)?;
                view.f_copy_(&changed)?;
            }
            None => {
                let indices = self.indices(tensor)?;
                let indices: Vec<Option<&Tensor>> = indices.iter().map(Some).collect();
                let changed = change(&tensor.f_index(&indices)?)?.f_to_kind(tensor.f_kind()?)?;
                // Another handle on the same memory.
                let _ = tensor.shallow_clone().f_index_put_(&indices, &changed, false)?;
            }
        }
        Ok(())
    }

    /// The chosen entries, with all dimensions of the tensor: a view where the choices are ranges, otherwise a copy.
    pub(crate) fn read_undropped(&self, tensor: &Tensor) -> Result<Tensor> {
        match self.view(tensor)? {
            Some(view) => Ok(view),
            None => {
                let indices = self.indices(tensor)?;
                let indices: Vec<Option<&Tensor>> = indices.iter().map(Some).collect();
                Ok(tensor.f_index(&indices)?)
            }
        }
    }

    /// The chosen entries, without the dimensions that are dropped: a view where the choices are ranges, otherwise a copy.
    pub(crate) fn read(&self, tensor: &Tensor) -> Result<Tensor> {
        let found = self.read_undropped(tensor)?;
        let dropped: Vec<i64> =
            (0i64..).zip(&self.picks).filter(|(_, pick)| pick.dropped).map(|(dim, _)| dim).collect();
        dropped.iter().rev().try_fold(found, |found, dim| Ok(found.f_squeeze_dim(*dim)?))
    }

    /// The part as a view, where its choices are ranges.
    fn view(&self, tensor: &Tensor) -> Result<Option<Tensor>> {
        let mut view = tensor.shallow_clone();
        for (dim, pick) in self.picks.iter().enumerate() {
            let Choice::Range { start, step, len } = pick.choice else { return Ok(None) };
            view = view.f_slice(dim as i64, Some(start), Some(start + (len - 1) * step + 1), step)?;
        }
        Ok(Some(view))
    }

    /// An index of every dimension, such that together they have the shape of the part before dimensions are dropped.
    fn indices(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let dims = self.picks.len();
        let index = |dim: usize, places: &[i64]| -> Result<Tensor> {
            let mut shape = vec![1; dims];
            shape[dim] = places.len() as i64;
            Ok(Tensor::f_from_slice(places)?.f_view(shape.as_slice())?.f_to_device(tensor.device())?)
        };
        let indices = self.picks.iter().enumerate().map(|(dim, pick)| match &pick.choice {
            Choice::Range { start, step, len } => index(dim, &(0..*len).map(|i| start + i * step).collect::<Vec<_>>()),
            Choice::List(places) => index(dim, places),
            Choice::PerRow(places) => index(0, places),
        });
        indices.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::scalar::arange;
    use proptest::prelude::*;
    use tch::Device;

    fn pick(len: i64) -> impl Strategy<Value = Pick> {
        prop_oneof![
            Just(()).prop_map(move |()| Pick::all(len)),
            (0..len).prop_map(|index| Pick::list(vec![index], true)),
            prop::collection::vec(0..len, 1..4).prop_map(|indices| Pick::list(indices, false)),
        ]
    }

    fn places(pick: &Pick, row: usize) -> Vec<i64> {
        match &pick.choice {
            Choice::Range { start, step, len } => (0..*len).map(|i| start + i * step).collect(),
            Choice::List(places) => places.clone(),
            Choice::PerRow(places) => vec![places[row]],
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        /// The chosen entries change, once each, and no others.
        #[test]
        fn what_is_chosen_is_written(rows in pick(3), columns in pick(4), last in pick(2), own in prop::collection::vec(0i64..4, 3), per_row: bool) {
            let columns = match per_row {
                true => Pick::per_row(own.into_iter().take(rows.len() as usize).collect(), true),
                false => columns,
            };
            let part = Part::new(vec![rows, columns, last]);
            let before = arange(0..24, Device::Cpu).unwrap().view([3, 4, 2]);
            let after = before.copy();
            part.write(&after, |found| Ok(found.f_add(&Tensor::from(100i64))?)).unwrap();
            let expected = before.copy();
            let mut chosen = std::collections::BTreeSet::new();
            for (nth, row) in places(&part.picks[0], 0).into_iter().enumerate() {
                for column in places(&part.picks[1], nth) {
                    for entry in places(&part.picks[2], 0) {
                        // A row that is chosen twice has its own column each time.
                        chosen.insert((row, column, entry));
                    }
                }
            }
            for (row, column, entry) in chosen {
                let _ = expected.select(0, row).select(0, column).select(0, entry).g_add_(&Tensor::from(100i64));
            }
            prop_assert_eq!(&after, &expected);
            prop_assert_eq!(part.lens().len(), 3);
            prop_assert_eq!(part.shape().len(), 3 - part.picks.iter().filter(|pick| pick.dropped).count());
        }
    }
}
