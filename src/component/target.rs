//! [`Target`]: the input that a decomposition sums to.

use std::fmt;

use super::Sublayer;
use crate::hook::{self, HookPoint};
use crate::layer::Layer;
use crate::{Config, Error, Result};

/// The reader of the residual stream whose input a decomposition sums to.
///
/// It replaces TransformerLens' pair of `layer` and `mlp_input`: `layer=3` is `Target::Attn(3)`, `layer=3, mlp_input=True` is
/// `Target::Mlp(3)`, and `layer=-1` or `None` is `Target::Unembed`. Negative layers count from the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Target {
    /// The attention of a layer: the stream is `resid_pre`.
    Attn(i64),
    /// The cross-attention of a decoder's layer: the stream is `resid_mid`.
    CrossAttn(i64),
    /// The MLP of a layer: the stream is `resid_mid`, or `resid_mid_cross` behind cross-attention, or `resid_pre` where attention and MLP
    /// run in parallel.
    Mlp(i64),
    /// The unembedding: the stream is the last `resid_post`, or `normalized_resid_post` where norms are of the stream itself.
    #[default]
    Unembed,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Attn(layer) => write!(f, "the attention of layer {layer}"),
            Target::CrossAttn(layer) => write!(f, "the cross-attention of layer {layer}"),
            Target::Mlp(layer) => write!(f, "the MLP of layer {layer}"),
            Target::Unembed => f.write_str("the unembedding"),
        }
    }
}

/// A target in a model, with a checked layer and the number of sublayers before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) target: Target,
    /// The number of attention layers that wrote to the stream before the target.
    pub(crate) attn_layers: usize,
    /// The number of cross-attentions that did.
    pub(crate) cross_layers: usize,
    /// The number of MLPs that wrote to the stream before the target.
    pub(crate) mlp_layers: usize,
    /// The number of layers that had done all that they do before the target.
    pub(crate) whole_layers: usize,
}

impl Target {
    /// [`Target::Attn`] from a layer of type `usize`, `i32`, `i64` or [`Layer`].
    ///
    /// ```
    /// use tch_lens::Target;
    /// assert_eq!(Target::attn(3usize), Target::Attn(3));
    /// assert_eq!(Target::attn(-1), Target::Attn(-1));
    /// ```
    pub fn attn(layer: impl Into<Layer>) -> Self {
        Target::Attn(layer.into().signed())
    }

    /// [`Target::CrossAttn`] from a layer of type `usize`, `i32`, `i64` or [`Layer`].
    pub fn cross_attn(layer: impl Into<Layer>) -> Self {
        Target::CrossAttn(layer.into().signed())
    }

    /// [`Target::Mlp`] from a layer of type `usize`, `i32`, `i64` or [`Layer`].
    pub fn mlp(layer: impl Into<Layer>) -> Self {
        Target::Mlp(layer.into().signed())
    }

    /// Resolves the target in a model with this configuration.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`]; [`Error::ModelHasNo`] for the MLP of an attention-only model.
    pub(crate) fn reach(self, config: &Config) -> Result<Reach> {
        let has_cross = config.attention.cross.is_some();
        let (target, attn_layers, cross_layers, mlp_layers) = match self {
            Target::Unembed => (Target::Unembed, config.n_layers, config.n_layers, config.n_layers),
            Target::Attn(layer) => {
                let layer = config.layer(layer)?;
                (Target::Attn(layer as i64), layer, layer, layer)
            }
            Target::CrossAttn(_) if !has_cross => {
                let why = format!("it is no decoder of an encoder-decoder, so {self} cannot be a target");
                return Err(Error::model_has_no("cross-attention", why));
            }
            Target::CrossAttn(layer) => {
                let layer = config.layer(layer)?;
                (Target::CrossAttn(layer as i64), layer + 1, layer, layer)
            }
            Target::Mlp(_) if config.attn_only() => {
                return Err(Error::model_has_no("MLPs", format!("it is attention-only, so {self} cannot be a target")));
            }
            Target::Mlp(layer) => {
                let layer = config.layer(layer)?;
                (Target::Mlp(layer as i64), layer + usize::from(!config.parallel_attn_mlp), layer + 1, layer)
            }
        };
        let whole_layers = mlp_layers;
        let (cross_layers, mlp_layers) =
            (if has_cross { cross_layers } else { 0 }, if config.attn_only() { 0 } else { mlp_layers });
        Ok(Reach { target, attn_layers, cross_layers, mlp_layers, whole_layers })
    }
}

impl Reach {
    /// How many sublayers of a kind wrote to the stream before the target: those of the first layers.
    pub(crate) fn layers(&self, sublayer: Sublayer) -> usize {
        match sublayer {
            Sublayer::Attention => self.attn_layers,
            Sublayer::CrossAttention => self.cross_layers,
            Sublayer::Mlp => self.mlp_layers,
        }
    }

    /// The sublayers that wrote to the stream before the target, in their order.
    pub(crate) fn sublayers(&self, config: &Config) -> impl Iterator<Item = (usize, Sublayer)> + use<> {
        let (reach, kinds) = (*self, Sublayer::of(config).collect::<Vec<_>>());
        let layers = 0..self.attn_layers.max(self.mlp_layers);
        let all = layers.flat_map(move |layer| kinds.clone().into_iter().map(move |sublayer| (layer, sublayer)));
        all.filter(move |(layer, sublayer)| *layer < reach.layers(*sublayer))
    }

    /// Whether the stream passes through the norm after a sublayer on the way to the target, in a model whose norms are of the stream itself:
    /// the target itself reads through the one right before it.
    pub(crate) fn is_behind_norm(&self, layer: usize, sublayer: Sublayer) -> bool {
        let read_through = match self.target {
            Target::CrossAttn(layer) => Some((layer, Sublayer::Attention)),
            Target::Mlp(layer) if self.cross_layers > 0 => Some((layer, Sublayer::CrossAttention)),
            Target::Mlp(layer) => Some((layer, Sublayer::Attention)),
            Target::Attn(_) | Target::Unembed => None,
        };
        layer < self.layers(sublayer) && Some((layer as i64, sublayer)) != read_through
    }

    /// The number of per-layer embeddings that were added before the target.
    pub(crate) fn layers_with_embeddings(&self, config: &Config) -> usize {
        config.stream.layer_embedding.map_or(0, |_| self.whole_layers)
    }

    /// The hook point of the stream at the target.
    pub(crate) fn stream(&self, config: &Config) -> HookPoint {
        match self.target {
            Target::Unembed => hook::stream_after(config, config.n_layers - 1),
            Target::Mlp(layer) if config.attention.cross.is_some() => hook::resid_mid_cross(layer as usize),
            Target::Mlp(layer) if !config.parallel_attn_mlp => hook::resid_mid(layer as usize),
            Target::CrossAttn(layer) => hook::resid_mid(layer as usize),
            Target::Attn(layer) | Target::Mlp(layer) => hook::resid_pre(layer as usize),
        }
    }
}
