//! [`EncoderDecoderCache`]: what a run kept of both stacks.

use std::ops::Index;

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::hook::{HookName, HookPoint};
use crate::{Error, Result};

/// The activations of an encoder and of the decoder that read its output, each an [`ActivationCache`] with all analyses of its stack.
///
/// A name that means one point of both is looked up in both: `cache["encoder.0.attn.hook_q"]`, `cache[hook::cross_pattern(1)]`.
#[derive(Clone, Debug)]
pub struct EncoderDecoderCache {
    /// Of the encoder.
    pub encoder: ActivationCache,
    /// Of the decoder. Its rows for heads, such as those of
    /// [`stack_head_results`](ActivationCache::stack_head_results), are those of self-attention and of cross-attention.
    pub decoder: ActivationCache,
}

impl EncoderDecoderCache {
    /// An activation, by any of its names.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::get`]; [`Error::WrongInput`] for a name that means a point of each stack, such as `("q", 0)`.
    pub fn get(&self, name: impl HookName) -> Result<&Tensor> {
        let found = |cache: &ActivationCache| name.resolve(cache.model().config());
        match (found(&self.encoder), found(&self.decoder)) {
            (Ok(one), Ok(other)) => Err(Error::wrong_input(format!(
                "the name means both `{one}` and `{other}`: use one of these names, or the cache's field `encoder` or `decoder`"
            ))),
            (Ok(point), Err(_)) => self.encoder.get(point),
            (Err(_), Ok(point)) => self.decoder.get(point),
            (Err(error), Err(Error::HookNotInModel { .. })) => Err(error),
            (Err(Error::UnknownHook { name, nearest }), Err(_)) if name.starts_with("encoder") => {
                Err(Error::UnknownHook { name, nearest })
            }
            (Err(_), Err(error)) => Err(error),
        }
    }

    /// Whether the cache holds an activation; an unknown name gives `false`.
    pub fn contains(&self, name: impl HookName) -> bool {
        self.get(name).is_ok()
    }

    /// The names of the activations, in the order in which they fired: the encoder's first.
    pub fn keys(&self) -> impl Iterator<Item = HookPoint> + '_ {
        self.encoder.keys().chain(self.decoder.keys())
    }

    /// The number of activations.
    pub fn len(&self) -> usize {
        self.encoder.len() + self.decoder.len()
    }

    /// Whether the cache holds no activation.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<N: HookName> Index<N> for EncoderDecoderCache {
    type Output = Tensor;

    /// [`EncoderDecoderCache::get`], for names that are surely there.
    ///
    /// # Panics
    ///
    /// With `get`'s error where they are not.
    fn index(&self, name: N) -> &Tensor {
        match self.get(name) {
            Ok(tensor) => tensor,
            Err(error) => panic!("{error}"),
        }
    }
}
