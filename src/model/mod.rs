//! The forward pass, from tokens to logits, in the order of the files: [`embed`], [`norm`], [`attention`] (with
//! [`mask`], [`rotary`] and [`mix`]), [`cross`], [`mlp`] or [`moe`], [`block`], [`unembed`].
//!
//! [`Transformer`] is the bare network: its shape, its weights and its forward pass. One pass serves all families, driven by
//! [`Config`]: no file here knows a family's name. The model knows no cache, no tokenizer and no file.

pub(crate) mod attention;
pub(crate) mod attention_input;
pub(crate) mod batch;
pub(crate) mod block;
pub(crate) mod context;
pub(crate) mod cross;
pub(crate) mod differential;
pub(crate) mod disentangled;
pub(crate) mod dynamic_mask;
pub(crate) mod embed;
mod encoder_context;
pub(crate) mod encoder_output;
pub(crate) mod forward;
pub(crate) mod head;
pub(crate) mod head_router;
pub(crate) mod indexer;
pub(crate) mod key_value_store;
pub(crate) mod latent;
pub(crate) mod layer_embedding;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod mask;
pub(crate) mod mix;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod parameters;
pub(crate) mod part;
pub(crate) mod placed_norm;
mod relative_bias;
pub(crate) mod rotary;
pub(crate) mod routing;
pub(crate) mod tables;
pub(crate) mod temporary;
pub(crate) mod unembed;
mod ungrouped;
mod variables;
mod weights_hash;

use std::sync::{Arc, Mutex};

use tch::{Device, Kind};

pub use encoder_output::EncoderOutput;
pub use key_value_store::KeyValueStore;

use crate::hook::{all_points, HookPoint};
use crate::sae::{Splice, Splices};
use crate::{Config, Result};

/// The bare network: a shape, weights, and the forward pass over them. It is one stack of blocks, with what stands before and after
/// them; an encoder-decoder is two.
///
/// A cheap handle: clones share the weights, and can be sent to and used from several threads.
/// [`HookedTransformer`](crate::HookedTransformer) adds text, files and caches to it.
#[derive(Clone, Debug)]
pub struct Transformer {
    config: Arc<Config>,
    /// Absent in the cache of a file that was opened without its model.
    weights: Option<Arc<Weights>>,
    /// The kind and the device of the weights.
    options: (Kind, Device),
    tables: Arc<tables::Tables>,
    /// The dictionaries of this handle.
    splices: Splices,
    /// The steps of weight processing, in words.
    processing: Arc<str>,
    /// The weights' versions, summed, and their hash, once it was asked for.
    weights_hash: Arc<Mutex<Option<(i64, u64)>>>,
}

/// All weights, by component.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub(crate) embed: embed::Embed,
    pub(crate) blocks: Vec<block::Block>,
    pub(crate) unembed: unembed::Unembed,
}

impl Weights {
    /// Whether the unembedding lies in the embedding's memory.
    pub(crate) fn is_tied(&self) -> bool {
        self.unembed.u.as_ref().is_some_and(|u| u.weight.data_ptr() == self.embed.w_e.data_ptr())
    }
}

impl Transformer {
    /// A network of this shape with these weights.
    pub(crate) fn new(config: Config, weights: Weights) -> Self {
        let options = (weights.embed.w_e.kind(), weights.embed.w_e.device());
        Transformer { weights: Some(Arc::new(weights)), ..Transformer::of_options(config, options) }
    }

    /// The shape of a network whose weights are not at hand.
    pub(crate) fn without_weights(config: Config, kind: Kind) -> Self {
        Transformer::of_options(config, (kind, Device::Cpu))
    }

    fn of_options(config: Config, options: (Kind, Device)) -> Self {
        let (config, processing) = (Arc::new(config), Arc::from(""));
        Transformer {
            config,
            weights: None,
            options,
            tables: Arc::default(),
            splices: Splices::default(),
            processing,
            weights_hash: Arc::default(),
        }
    }

    /// A handle on the same weights with these dictionaries in place of its own.
    pub(crate) fn with_splices(&self, splices: Splices) -> Self {
        let mut config = self.config().clone();
        splices.attach_to(&mut config);
        Transformer { config: Arc::new(config), splices, ..self.clone() }
    }

    /// The activations that dictionaries reconstruct, in the order in which these were attached.
    pub(crate) fn spliced_points(&self) -> Vec<HookPoint> {
        self.splices.iter().map(Splice::hook_out).collect()
    }

    pub(crate) fn splices(&self) -> &Splices {
        &self.splices
    }

    /// The same network, which says that its weights were processed like this.
    pub(crate) fn with_processing(self, steps: &str) -> Self {
        Transformer { processing: Arc::from(steps), ..self }
    }

    /// The steps of weight processing, in words; empty where there were none.
    pub(crate) fn processing_steps(&self) -> &str {
        &self.processing
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn shared_config(&self) -> &Arc<Config> {
        &self.config
    }

    /// # Errors
    ///
    /// [`Error::NoWeights`](crate::Error::NoWeights).
    pub(crate) fn weights(&self) -> Result<&Weights> {
        self.weights.as_deref().ok_or(crate::Error::NoWeights)
    }

    /// Whether this and another handle are of the same weights.
    pub(crate) fn has_weights_of(&self, other: &Transformer) -> bool {
        matches!((&self.weights, &other.weights), (Some(ours), Some(theirs)) if Arc::ptr_eq(ours, theirs))
    }

    pub(crate) fn tables(&self) -> &tables::Tables {
        &self.tables
    }

    /// The kind of the weights.
    pub fn kind(&self) -> Kind {
        self.options.0
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.options.1
    }

    /// The names of all hook points, those computed on request included, in firing order.
    pub fn hook_names(&self) -> Vec<String> {
        all_points(&self.config).map(|point| point.to_string()).collect()
    }
}
