//! The forward pass, from tokens to logits, in the order of the files: [`embed`], [`norm`], [`attention`] (with
//! [`mask`] and [`rotary`]), [`cross`], [`mlp`] or [`moe`], [`block`], [`unembed`].
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
pub(crate) mod embed;
mod encoder_context;
pub(crate) mod encoder_output;
pub(crate) mod forward;
pub(crate) mod head;
pub(crate) mod head_router;
pub(crate) mod key_value_store;
pub(crate) mod latent;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod mask;
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

use std::sync::Arc;

use tch::{Device, Kind};

pub use encoder_output::EncoderOutput;
pub use key_value_store::KeyValueStore;

use crate::hook::all_points;
use crate::sae::Splices;
use crate::Config;

/// The bare network: a shape, weights, and the forward pass over them. It is one stack of blocks, with what stands before and after
/// them; an encoder-decoder is two.
///
/// A cheap handle: clones share the weights, and can be sent to and used from several threads.
/// [`HookedTransformer`](crate::HookedTransformer) adds text, files and caches to it.
#[derive(Clone, Debug)]
pub struct Transformer {
    config: Arc<Config>,
    weights: Arc<Weights>,
    tables: Arc<tables::Tables>,
    /// The dictionaries of this handle.
    splices: Splices,
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
        Transformer {
            config: Arc::new(config),
            weights: Arc::new(weights),
            tables: Arc::default(),
            splices: Splices::default(),
        }
    }

    /// A handle on the same weights with these dictionaries in place of its own.
    pub(crate) fn with_splices(&self, splices: Splices) -> Self {
        let mut config = self.config().clone();
        splices.attach_to(&mut config);
        Transformer { config: Arc::new(config), splices, ..self.clone() }
    }

    pub(crate) fn splices(&self) -> &Splices {
        &self.splices
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn shared_config(&self) -> &Arc<Config> {
        &self.config
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Whether this and another handle are of the same weights.
    pub(crate) fn has_weights_of(&self, other: &Transformer) -> bool {
        Arc::ptr_eq(&self.weights, &other.weights)
    }

    pub(crate) fn tables(&self) -> &tables::Tables {
        &self.tables
    }

    /// The kind of the weights.
    pub fn kind(&self) -> Kind {
        self.weights().embed.w_e.kind()
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.weights().embed.w_e.device()
    }

    /// The names of all hook points, those computed on request included, in firing order.
    pub fn hook_names(&self) -> Vec<String> {
        all_points(&self.config).map(|point| point.to_string()).collect()
    }
}
