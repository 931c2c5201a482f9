//! [`ProbeData`]: activations with labels.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};

use super::fit::ControlLabels;
use crate::cache::ActivationCache;
use crate::hook::HookName;
use crate::tensor::split_mix::SplitMix64;
use crate::{Error, Result};

/// Where an activation of a cache comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeExample {
    /// The row of the batch.
    pub row: usize,
    /// The token column.
    pub position: i64,
    /// The token.
    pub token: i64,
}

/// Vectors of activations, each with a label: what a probe learns from.
///
/// Examples of one group are never on both sides of the split into training and test: of a cache, those of one row are a group, as tokens of
/// one text are much alike.
#[derive(Debug)]
pub struct ProbeData {
    /// `[example, d]`, fp64, on the CPU.
    pub(super) features: Tensor,
    /// From 0 to `n_classes`.
    pub(super) labels: Vec<usize>,
    pub(super) n_classes: usize,
    groups: Vec<i64>,
    /// The kind of each example, for the control: its token, or its number.
    kinds: Vec<i64>,
}

/// The examples of training, and those of the test.
pub(super) struct Split {
    pub(super) train: Vec<i64>,
    pub(super) test: Vec<i64>,
}

impl ProbeData {
    /// Vectors, `[example, d]`, each with a label from 0; each example is a group of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`]; [`Error::WrongInput`] for fewer than two classes, a class without examples, and numbers that are not finite.
    pub fn new(features: &Tensor, labels: &[usize]) -> Result<Self> {
        let shape = if features.defined() { features.size() } else { Vec::new() };
        if shape.len() != 2 || shape[0] != labels.len() as i64 {
            let expected = format!("[{}, d], a vector for each label", labels.len());
            return Err(Error::Shape { what: "the tensor of activations".into(), found: shape, expected });
        }
        let classes: BTreeSet<usize> = labels.iter().copied().collect();
        let n_classes = classes.len();
        if n_classes < 2 {
            return Err(Error::wrong_input(format!("a probe tells classes apart, but the labels have {n_classes}")));
        }
        if let Some(absent) = (0..n_classes).find(|class| !classes.contains(class)) {
            return Err(Error::wrong_input(format!(
                "{n_classes} classes have the labels 0 to {}, but no example has {absent}",
                n_classes - 1
            )));
        }
        let features = features.f_detach()?.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double)?;
        if features.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::wrong_input("the activations have infinite entries or NaN"));
        }
        let numbers: Vec<i64> = (0..shape[0]).collect();
        Ok(ProbeData { features, labels: labels.to_vec(), n_classes, groups: numbers.clone(), kinds: numbers })
    }

    /// The activations of a cache at a point, each with the label that `label` gives it; without one, an activation is left out, as padding is.
    /// The last axis is a vector's; heads' activations are one vector for all heads.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::get`] and [`ProbeData::new`]; [`Error::WrongInput`] for a point without tokens, or a cache without its batch
    /// dimension.
    pub fn of_cache(
        cache: &ActivationCache,
        point: impl HookName,
        label: impl Fn(ProbeExample) -> Option<usize>,
    ) -> Result<Self> {
        let point = point.resolve(cache.model().config())?;
        let activation = cache.get(point)?;
        if (cache.batch_axis(point), cache.position_axis(point)) != (Some(0), Some(1)) {
            return Err(Error::wrong_input(format!(
                "`{point}` is not of tokens of a batch: choose a point whose activation begins with [batch, pos]"
            )));
        }
        let (columns, past) = (cache.positions_of(point)?, cache.past());
        let vectors = activation.f_flatten(2, -1)?; // [batch, pos, d]
        let n_pos = vectors.size()[1];
        let ids = Vec::<Vec<i64>>::try_from(cache.tokens().ids.f_to_device(tch::Device::Cpu)?)?;
        let mask = match &cache.tokens().mask {
            Some(mask) => Some(Vec::<Vec<i64>>::try_from(mask.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Int64)?)?),
            None => None,
        };
        let (mut places, mut labels, mut groups, mut kinds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (row, ids) in (0i64..).zip(&ids) {
            for (place, position) in columns.of_row(row as usize).into_iter().enumerate() {
                let column = (position - past) as usize;
                let is_padding = mask
                    .as_ref()
                    .is_some_and(|mask| mask.get(row as usize).and_then(|row| row.get(column)) == Some(&0));
                let Some(token) = ids.get(column).copied().filter(|_| !is_padding) else { continue };
                if let Some(label) = label(ProbeExample { row: row as usize, position, token }) {
                    places.push(row * n_pos + place as i64);
                    labels.push(label);
                    groups.push(row);
                    kinds.push(token);
                }
            }
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(vectors.device())?;
        let chosen = vectors.f_flatten(0, 1)?.f_index_select(0, &places)?; // [example, d]
        Ok(ProbeData { groups, kinds, ..ProbeData::new(&chosen, &labels)? })
    }

    /// The group of each example.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for another number of groups than examples.
    pub fn groups(mut self, groups: Vec<i64>) -> Result<Self> {
        if groups.len() != self.len() {
            return Err(Error::wrong_input(format!(
                "{} examples need as many groups, not {}",
                self.len(),
                groups.len()
            )));
        }
        self.groups = groups;
        Ok(self)
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no examples: never, as [`ProbeData::new`] refuses that.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// How many classes there are.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// A random part of the groups for the test, at least one; all others for training.
    pub(super) fn split(&self, test_fraction: f64, seed: u64) -> Result<Split> {
        let mut groups: Vec<i64> = self.groups.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if groups.len() < 2 {
            return Err(Error::wrong_input(
                "training and test need at least two groups of examples, such as rows of a batch",
            ));
        }
        groups.sort_by_key(|group| SplitMix64::new([seed, *group as u64]).next_bits());
        let n_test = ((groups.len() as f64 * test_fraction).round() as usize).clamp(1, groups.len() - 1);
        let test: BTreeSet<i64> = groups[..n_test].iter().copied().collect();
        let of = |in_test: bool| {
            let chosen = (0i64..).zip(&self.groups).filter(|(_, group)| test.contains(group) == in_test);
            chosen.map(|(example, _)| example).collect::<Vec<_>>()
        };
        Ok(Split { train: of(false), test: of(true) })
    }

    /// The labels of the control: each token, or each example, has the label of a random example.
    pub(super) fn control_labels(&self, control: ControlLabels, seed: u64) -> Vec<usize> {
        let label = |(example, kind): (usize, &i64)| {
            let kind = match control {
                ControlLabels::ByToken => *kind as u64,
                ControlLabels::ByExample => example as u64,
            };
            let bits = SplitMix64::new([seed, 1, kind]).next_bits();
            self.labels[(bits % self.labels.len() as u64) as usize]
        };
        self.kinds.iter().enumerate().map(label).collect()
    }
}
