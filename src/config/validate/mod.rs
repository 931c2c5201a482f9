//! [`Config::validate`]: what would give NaN, a panic or a silent wrong number later is refused here, by name.

mod attention;
mod mlp;
mod norms;
mod rotary;

use self::rotary::validate_rotary;
use super::{
    Activation, Config, LayerEmbedding, NormPosition, Normalization, PerLayer, Positions, Sinusoids, StreamConfig,
    StreamFactors,
};
use crate::{Error, Result};

/// No model has more layers.
pub(crate) const MAX_LAYERS: usize = 1 << 12;
/// No layer has more experts.
const MAX_EXPERTS: usize = 1 << 16;
/// No size is larger than this.
const MAX_SIZE: usize = 1 << 28;
/// No matrix has more entries than this: 4 TB in fp32.
const MAX_ENTRIES: usize = 1 << 40;
/// No table of sines and cosines has more entries than this.
const MAX_TABLE: usize = 1 << 27;
/// No window is larger than this. A window past the context is as good as none, so this is no limit in practice.
const MAX_WINDOW: usize = 1 << 31;
/// Numbers outside of these are 0 or infinite in fp32.
const FP32: [f64; 2] = [f32::MIN_POSITIVE as f64, f32::MAX as f64];
/// Positions times frequencies stay far from infinity within these.
const STRETCH: [f64; 2] = [1e-6, 1e6];

impl Config {
    /// Checks that the numbers fit together, and that none of them makes a forward pass panic or give NaN.
    ///
    /// ```
    /// use tch_lens::Config;
    /// let mut config = Config::new(2, 64, 4, 100, 32);
    /// config.norms.eps = f64::NAN;
    /// let error = config.validate().unwrap_err().to_string();
    /// assert!(error.starts_with("config field `norms.eps` is NaN"));
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`], naming the first field that does not fit.
    pub fn validate(&self) -> Result<()> {
        self.validate_sizes()?;
        self.validate_attention()?;
        self.validate_mlp()?;
        self.validate_norms()?;
        self.validate_stream()?;
        match &self.positions {
            Positions::Rotary(rotations) => {
                self.validate_list("positions", rotations)?;
                // Where layers have heads of other widths, each layer's rotation has to fit its own.
                let checked = if self.has_own_widths() { self.n_layers } else { rotations.values().len() };
                for layer in 0..checked {
                    if let Some(rotary) = self.rotation(layer) {
                        validate_rotary("positions", rotary, self.d_head_of(layer))?;
                    }
                }
                if rotations.values().iter().all(Option::is_none) {
                    return Err(Error::field("positions", "rotary", "no layer rotates: it is `None` then"));
                }
            }
            Positions::Sinusoidal(Sinusoids { offset, steps }) => {
                // The table is computed, so no file bounds it.
                if self.n_ctx.saturating_mul(self.d_model) > MAX_TABLE {
                    let why = format!(
                        "with d_model {} a table of sines and cosines has more than 2^27 entries",
                        self.d_model
                    );
                    return Err(Error::field("n_ctx", self.n_ctx, &why));
                }
                size("positions.steps", *steps, MAX_SIZE)?;
                size("positions.offset", offset.saturating_add(1), MAX_SIZE)?;
                if !self.d_model.is_multiple_of(2) {
                    return Err(Error::field(
                        "d_model",
                        self.d_model,
                        "half of it are sines, half cosines: it must be even",
                    ));
                }
            }
            Positions::Alibi { bias_max, rounded: _ } => between("positions.bias_max", *bias_max, [1e-3, 1e3])?,
            Positions::Learned | Positions::Shortformer | Positions::None => {}
        }
        size("n_ctx", self.n_ctx, MAX_SIZE)?; // after the rotation, whose stretch it may be a product of
        if self.parallel_attn_mlp && self.norms.position != NormPosition::Before {
            return Err(Error::field("parallel_attn_mlp", true, "a parallel block has its norms before it"));
        }
        if let Some(cap) = self.output_logits_soft_cap {
            between("output_logits_soft_cap", cap, FP32)?;
        }
        if self.tie_word_embeddings && self.d_vocab_out != self.d_vocab {
            let why = format!("the unembedding is the embedding, of d_vocab {}", self.d_vocab);
            return Err(Error::field("d_vocab_out", self.d_vocab_out, &why));
        }
        Ok(())
    }

    fn validate_sizes(&self) -> Result<()> {
        size("n_layers", self.n_layers, MAX_LAYERS)?;
        for (field, value) in [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("d_head", self.d_head),
            ("n_key_value_heads", self.n_key_value_heads),
            ("d_vocab", self.d_vocab),
            ("d_vocab_out", self.d_vocab_out),
            ("embed.width", self.d_embed()),
            ("head.width", self.d_unembed()),
            ("embed.token_types", self.embed.token_types.max(1)),
            ("embed.task_types", self.embed.task_types.max(1)),
        ] {
            size(field, value, MAX_SIZE)?;
        }
        if !self.n_heads.is_multiple_of(self.n_key_value_heads) {
            let why = format!("it must divide n_heads, {}", self.n_heads);
            return Err(Error::field("n_key_value_heads", self.n_key_value_heads, &why));
        }
        let heads = self.n_heads * self.d_head;
        if heads > MAX_SIZE {
            return Err(Error::field("d_head", self.d_head, &format!("n_heads · d_head is {heads}, more than 2^28")));
        }
        let n_ctx = if self.has_w_pos() { self.n_ctx } else { 1 };
        let rows = [
            ("d_vocab", self.d_vocab),
            ("d_vocab_out", self.d_vocab_out),
            ("n_ctx", n_ctx),
            ("d_head", 3 * heads),
            ("mlp.d_mlp", self.widest_mlp()),
        ];
        for (field, rows) in rows {
            if rows.saturating_mul(self.d_model) > MAX_ENTRIES {
                let why = format!("with d_model {} it makes a matrix of more than 2^40 entries", self.d_model);
                return Err(Error::field(field, rows, &why));
            }
        }
        Ok(())
    }

    /// A list has one entry for each layer.
    fn validate_list<T>(&self, field: &str, list: &PerLayer<T>) -> Result<()> {
        match list {
            PerLayer::Each(layers) if layers.len() != self.n_layers => {
                let why = format!("it must have one entry for each of the {} layers", self.n_layers);
                Err(Error::field(field, format!("a list of {}", layers.len()), &why))
            }
            _ => Ok(()),
        }
    }

    /// Whether some layer's heads have a width of their own.
    fn has_own_widths(&self) -> bool {
        self.attention.heads.values().iter().flatten().any(|heads| heads.d_head.is_some())
    }

    fn validate_stream(&self) -> Result<()> {
        let StreamConfig { layer_embedding, layer_scalars, gains, factors } = &self.stream;
        self.validate_list("stream.factors", factors)?;
        for StreamFactors { attn, mlp } in factors.values().iter().flatten() {
            between("stream.factors.attn", *attn, STRETCH)?;
            between("stream.factors.mlp", *mlp, STRETCH)?;
        }
        let factors = factors.values().iter().any(Option::is_some);
        if factors && *gains {
            return Err(Error::field("stream.gains", true, "there are factors already"));
        }
        let factors = factors || *gains;
        if factors && (self.parallel_attn_mlp || self.attn_only()) {
            let why = "each sublayer has one, so attention and MLP come one after the other";
            return Err(Error::field("stream.factors", "set", why));
        }
        if self.norms.position == NormPosition::InStream && (*layer_scalars || factors || layer_embedding.is_some()) {
            return Err(Error::field("stream", "set", "the stream itself is normalised"));
        }
        let Some(LayerEmbedding { width, d_vocab, activation }) = layer_embedding else { return Ok(()) };
        size("stream.layer_embedding.width", *width, MAX_SIZE)?;
        let rows = self.n_layers.saturating_mul(*width);
        if rows.saturating_mul(self.d_model.max(*d_vocab)) > MAX_ENTRIES {
            let why = "with this width of all layers it makes a matrix of more than 2^40 entries";
            return Err(Error::field("stream.layer_embedding.d_vocab", d_vocab, why));
        }
        if *d_vocab < self.d_vocab {
            let why = format!("each of the {} entries of the vocabulary needs a row", self.d_vocab);
            return Err(Error::field("stream.layer_embedding.d_vocab", d_vocab, &why));
        }
        match activation {
            Activation::SoluLn | Activation::Xielu => {
                let why = "it belongs to an MLP";
                Err(Error::field("stream.layer_embedding.activation", format!("{activation:?}"), why))
            }
            _ if self.normalization_type() == Normalization::None => Err(Error::field(
                "stream.layer_embedding",
                "set",
                "its norm has the kind of the others, and there are none",
            )),
            _ => Ok(()),
        }
    }
}

/// A size of at least 1.
fn size(field: &str, value: usize, max: usize) -> Result<()> {
    match (1..=max).contains(&value) {
        true => Ok(()),
        false if max.is_power_of_two() && max > MAX_LAYERS => {
            Err(Error::field(field, value, &format!("it must be between 1 and 2^{}", max.ilog2())))
        }
        false => Err(Error::field(field, value, &format!("it must be between 1 and {max}"))),
    }
}

/// A number within these bounds, so neither NaN nor infinite.
fn between(field: &str, value: f64, [low, high]: [f64; 2]) -> Result<()> {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(Error::field(field, value, &format!("it must be a number between {low:e} and {high:e}"))),
    }
}
