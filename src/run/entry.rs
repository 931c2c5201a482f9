//! [`Entry`]: what a cache holds of an activation.

use std::sync::{Arc, OnceLock};

use tch::{Device, Tensor};

use crate::hook::{HookPoint, Site};
use crate::sae::{Dictionary, SparseFeatures};
use crate::tensor::slice::Slice;
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// What a cache holds of an activation: its tensor, or what takes less memory and says the same.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Dense(SharedTensor),
    Late(Arc<Late>),
}

/// An activation whose tensor is formed when it is first asked for, and held from then on.
#[derive(Debug)]
pub(crate) struct Late {
    source: Source,
    dense: OnceLock<SharedTensor>,
}

/// What an activation is formed of.
#[derive(Debug)]
enum Source {
    /// The features that are active.
    Active(SparseFeatures),
    /// What a dictionary encodes: `[batch, pos, d_in]`. Its pre-activations are meant.
    Encoded { dictionary: Dictionary, input: SharedTensor },
}

impl From<Tensor> for Entry {
    fn from(tensor: Tensor) -> Self {
        Entry::Dense(tensor.into())
    }
}

impl From<Source> for Entry {
    fn from(source: Source) -> Self {
        Entry::Late(Arc::new(Late { source, dense: OnceLock::new() }))
    }
}

impl Entry {
    /// The active features of a dictionary.
    pub(crate) fn active(features: SparseFeatures) -> Self {
        Source::Active(features).into()
    }

    /// The pre-activations of a dictionary that encodes this input: `[batch, pos, d_in]`.
    pub(crate) fn encoded(dictionary: Dictionary, input: Tensor) -> Self {
        Source::Encoded { dictionary, input: input.into() }.into()
    }

    /// An activation as a cache keeps it: the features of a dictionary as sparse rows, where these take less memory and nothing records a
    /// gradient.
    pub(crate) fn kept(point: HookPoint, tensor: Tensor) -> Result<Self> {
        if point.site() != Site::SaeActsPost || tensor.requires_grad() {
            return Ok(tensor.into());
        }
        let active = SparseFeatures::from_dense(&tensor)?;
        match active.bytes()? < tensor.numel() * tensor.f_kind()?.elt_size_in_bytes() {
            true => Ok(Entry::active(active)),
            false => Ok(tensor.into()),
        }
    }

    /// The activation.
    pub(crate) fn dense(&self) -> Result<&Tensor> {
        match self {
            Entry::Dense(tensor) => Ok(tensor),
            Entry::Late(late) => match late.dense.get() {
                Some(tensor) => Ok(tensor),
                None => {
                    let tensor = late.source.form()?;
                    Ok(late.dense.get_or_init(|| tensor.into()))
                }
            },
        }
    }

    /// The activation, which is not held unless it was before.
    pub(crate) fn formed(&self) -> Result<Tensor> {
        match self {
            Entry::Dense(tensor) => Ok(tensor.shallow_clone()),
            Entry::Late(late) => match late.dense.get() {
                Some(tensor) => Ok(tensor.shallow_clone()),
                None => late.source.form(),
            },
        }
    }

    /// The sparse rows that it is made of, if it is.
    pub(crate) fn rows(&self) -> Option<&SparseFeatures> {
        match self {
            Entry::Late(late) => late.source.rows(),
            Entry::Dense(_) => None,
        }
    }

    /// Its entries that are not 0, as sparse rows.
    pub(crate) fn sparse(&self) -> Result<SparseFeatures> {
        match self.rows() {
            Some(rows) => Ok(rows.clone()),
            None => SparseFeatures::from_dense(&self.formed()?),
        }
    }

    /// The tensor that a hook may have been shown, and must not have changed.
    pub(crate) fn shown(&self) -> &Tensor {
        match self {
            Entry::Dense(tensor) => tensor,
            Entry::Late(late) => match &late.source {
                Source::Active(features) => features.values(),
                Source::Encoded { input, .. } => input,
            },
        }
    }

    /// The shape of the activation.
    pub(crate) fn size(&self) -> Vec<i64> {
        match self {
            Entry::Dense(tensor) => tensor.size(),
            Entry::Late(late) => match &late.source {
                Source::Active(features) => features.size(),
                Source::Encoded { dictionary, input } => {
                    let mut size = input.size();
                    if let Some(last) = size.last_mut() {
                        *last = dictionary.d_sae() as i64;
                    }
                    size
                }
            },
        }
    }

    /// These places of an axis before the last one.
    pub(crate) fn sliced(&self, slice: &Slice, axis: usize, what: &'static str) -> Result<Self> {
        self.chosen(|tensor| slice.apply(tensor, axis as i64, what))
    }

    /// The first `len` places of an axis before the last one.
    pub(crate) fn narrowed(&self, axis: i64, len: i64) -> Result<Self> {
        self.chosen(|tensor| Ok(tensor.f_narrow(axis, 0, len)?))
    }

    /// What a choice along axes before the last one gives. `choose` gets an activation, or whatever else has its first axes.
    fn chosen(&self, choose: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        match self {
            Entry::Dense(tensor) => Ok(choose(tensor)?.into()),
            Entry::Late(late) => match &late.source {
                Source::Active(features) => Ok(Entry::active(features.at(&choose(&features.numbers()?)?)?)),
                Source::Encoded { dictionary, input } => Ok(Entry::encoded(dictionary.clone(), choose(input)?)),
            },
        }
    }

    /// Entries of one activation, one behind the other along an axis before the last one.
    pub(crate) fn joined(parts: &[Entry], axis: i64) -> Result<Self> {
        let rows: Option<Vec<_>> = parts.iter().map(Entry::rows).collect();
        if let Some(rows) = rows {
            return Ok(Entry::active(SparseFeatures::joined(&rows, axis)?));
        }
        let encoded = |entry: &Entry| match entry {
            Entry::Late(late) => match &late.source {
                Source::Encoded { dictionary, input } => Some((dictionary.clone(), input.shallow_clone())),
                Source::Active(_) => None,
            },
            Entry::Dense(_) => None,
        };
        let inputs: Option<(Vec<_>, Vec<_>)> = parts.iter().map(encoded).collect();
        if let Some((dictionaries, inputs)) = inputs
            && let Some(dictionary) = dictionaries.into_iter().next()
        {
            return Ok(Entry::encoded(dictionary, Tensor::f_cat(&inputs, axis)?));
        }
        let parts = parts.iter().map(Entry::formed).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&parts, axis)?.into())
    }

    /// The same on another device.
    pub(crate) fn to_device(&self, device: Device) -> Result<Self> {
        match self {
            Entry::Dense(tensor) => Ok(tensor.f_to_device(device)?.into()),
            Entry::Late(late) => match &late.source {
                Source::Active(features) => Ok(Entry::active(features.to_device(device)?)),
                Source::Encoded { .. } => Ok(self.formed()?.f_to_device(device)?.into()),
            },
        }
    }
}

impl Source {
    fn form(&self) -> Result<Tensor> {
        match self {
            Source::Active(features) => features.to_dense(),
            Source::Encoded { dictionary, input } => dictionary.pre_activations(input),
        }
    }

    fn rows(&self) -> Option<&SparseFeatures> {
        match self {
            Source::Active(features) => Some(features),
            Source::Encoded { .. } => None,
        }
    }
}
