//! [`Splice`]: a dictionary at its place in a model.

use std::sync::Arc;

use tch::{Device, Kind};

use super::dictionary::Dictionary;
use super::kind::FeatureActivation;
use crate::config::AttachedDictionary;
use crate::hook::{all_points, Extent, HookName, HookPoint};
use crate::tensor::precision::at_least_float;
use crate::{Config, Result};

/// How dictionaries are spliced into runs.
#[derive(Clone, Debug, Default)]
pub struct SaeOptions {
    pub(crate) error_term: bool,
    pub(crate) excluded: Vec<i64>,
}

impl SaeOptions {
    /// Without error terms, at all tokens.
    pub fn new() -> Self {
        SaeOptions::default()
    }

    /// Whether the error, what the reconstruction leaves out of the activation, is added to the reconstruction: SAELens' `use_error_term`. Then
    /// a run in which no feature is changed computes what it would compute without the dictionary. The error is a constant for
    /// gradients.
    pub fn error_term(mut self, yes: bool) -> Self {
        self.error_term = yes;
        self
    }

    /// Leaves the activations at these tokens as they are: SAELens' `exclude_special_tokens`.
    pub fn exclude_tokens(mut self, ids: impl Into<Vec<i64>>) -> Self {
        self.excluded = ids.into();
        self
    }
}

/// A dictionary at its place in a model.
#[derive(Clone, Debug)]
pub(crate) struct Splice {
    pub(crate) dictionary: Dictionary,
    /// The points of the dictionary, their layers counted from the start.
    pub(crate) hook_in: HookPoint,
    pub(crate) outputs: Vec<HookPoint>,
    pub(crate) options: SaeOptions,
}

impl Splice {
    /// A dictionary in a model of this shape, whose weights are of this kind on this device.
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`](crate::Error::Dictionary) where it does not fit; those of the names of its points.
    pub(crate) fn new(
        dictionary: Dictionary,
        options: SaeOptions,
        config: &Config,
        (kind, device): (Kind, Device),
    ) -> Result<Self> {
        let hook_in = dictionary.hook_in().resolve(config)?;
        let outputs = dictionary.outputs().map(|hook| hook.resolve(config)).collect::<Result<Vec<_>>>()?;
        let refused = |what: String| Err(dictionary.refused(what));
        if let FeatureActivation::BatchTopK(_) = dictionary.config().activation {
            return refused("a BatchTopK dictionary compares all positions of a batch, so a row would not get what it gets alone: convert it to JumpReLU".into());
        }
        let wide = at_least_float(kind);
        if dictionary.kind() != wide || dictionary.device() != device {
            let (found, at) = (dictionary.kind(), dictionary.device());
            return refused(format!(
                "it is {found:?} on {at:?}, but in a model of {kind:?} on {device:?} it must be {wide:?} on {device:?}: load it so, or use `Dictionary::to`"
            ));
        }
        let flattens = dictionary.config().flatten_heads;
        for (hook, width) in
            std::iter::once((hook_in, dictionary.d_in())).chain(outputs.iter().map(|hook| (*hook, dictionary.d_out())))
        {
            if hook.spliced_at().is_some() {
                return refused(format!("`{hook}` is a point of a dictionary itself"));
            }
            let shape = hook.shape(config, 1, 1);
            let found = match (hook.extents(config), &shape[..]) {
                ([Extent::Batch, Extent::Pos, _], [_, _, width]) => *width,
                ([Extent::Batch, Extent::Pos, Extent::Head | Extent::KvHead, _], [_, _, heads, d_head]) if flattens => {
                    heads.saturating_mul(*d_head)
                }
                _ => return refused(format!("`{hook}` has shape {shape:?}, but an activation must be [batch, pos, d], or have heads that are flattened")),
            };
            if found != width as i64 {
                return refused(format!("`{hook}` is {found} wide in this model, and the dictionary {width}"));
            }
        }
        let turn = |hook: HookPoint| all_points(config).position(|point| point == hook);
        if let Some(early) = outputs.iter().find(|hook| turn(**hook) < turn(hook_in)) {
            return refused(format!("it would reconstruct `{early}` from `{hook_in}`, which is computed later"));
        }
        Ok(Splice { dictionary, hook_in, outputs, options })
    }

    /// The activation that it reconstructs.
    pub(crate) fn hook_out(&self) -> HookPoint {
        self.outputs.first().copied().unwrap_or(self.hook_in)
    }

    /// Whether what it puts in place is made of what the model computed there as well.
    pub(crate) fn uses_original(&self) -> bool {
        self.options.error_term || !self.options.excluded.is_empty()
    }

    /// What hook points must know of it.
    fn attached(&self) -> AttachedDictionary {
        let (hook, dictionary) = (self.hook_out(), &self.dictionary);
        AttachedDictionary {
            at: (hook.layer(), hook.site().name()),
            d_in: dictionary.d_in(),
            d_sae: dictionary.d_sae(),
            d_out: dictionary.d_out(),
            error_term: self.options.error_term,
        }
    }
}

/// The dictionaries of a handle on a model. None take no memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splices(Option<Arc<[Splice]>>);

impl Splices {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Splice> {
        self.0.iter().flat_map(|splices| splices.iter())
    }

    /// The one that reconstructs this activation, and its number.
    pub(crate) fn at(&self, point: HookPoint) -> Option<(usize, &Splice)> {
        self.iter().enumerate().find(|(_, splice)| splice.hook_out() == point)
    }

    /// These, and more.
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`](crate::Error::Dictionary) where two reconstruct one activation, or where a part of a cross-layer transcoder is missing.
    pub(crate) fn and(&self, more: Vec<Splice>) -> Result<Self> {
        let all: Vec<Splice> = self.iter().cloned().chain(more).collect();
        for (nth, splice) in all.iter().enumerate() {
            if all.iter().take(nth).any(|other| other.hook_out() == splice.hook_out()) {
                return Err(splice.dictionary.refused("another one reconstructs this activation already"));
            }
            if let Some(alone) = splice.outputs.iter().find(|hook| !all.iter().any(|other| other.hook_out() == **hook))
            {
                return Err(splice
                    .dictionary
                    .refused(format!("it contributes to `{alone}`, whose own dictionary is not attached")));
            }
        }
        Ok(Splices((!all.is_empty()).then(|| all.into())))
    }

    /// A shape with their points.
    pub(crate) fn attach_to(&self, config: &mut Config) {
        config.dictionaries = Default::default();
        self.iter().for_each(|splice| config.dictionaries.push(splice.attached()));
    }

    /// These, on another device or in another kind.
    pub(crate) fn to(&self, kind: Kind, device: Device) -> Result<Self> {
        let moved = |splice: &Splice| -> Result<Splice> {
            Ok(Splice { dictionary: splice.dictionary.to(at_least_float(kind), device)?, ..splice.clone() })
        };
        let moved = self.iter().map(moved).collect::<Result<Vec<_>>>()?;
        Ok(Splices((!moved.is_empty()).then(|| moved.into())))
    }
}
