//! [`Config::validate`]: every number that would give an error, a panic or NaN later is refused here, by name.

use super::{Activation, Config, MlpKind, NormPosition, PerLayer, Positions, Reach, Rotary};
use crate::{Error, Result};

/// No model has more layers.
pub(crate) const MAX_LAYERS: usize = 1 << 12;
/// No size is larger than this; the product of two fits an `i64`.
const MAX_SIZE: usize = 1 << 28;

impl Config {
    /// Checks that the numbers fit together.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`], naming the first field that does not.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("n_layers", self.n_layers),
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("d_head", self.d_head),
            ("n_key_value_heads", self.n_key_value_heads),
            ("d_vocab", self.d_vocab),
            ("d_vocab_out", self.d_vocab_out),
            ("n_ctx", self.n_ctx),
        ];
        for (field, value) in sizes {
            if value == 0 || value > MAX_SIZE {
                return Err(Error::field(field, value, "it must be between 1 and 2^28"));
            }
        }
        if self.n_layers > MAX_LAYERS {
            return Err(Error::field("n_layers", self.n_layers, "more than 4096 layers are not supported"));
        }
        if !self.n_heads.is_multiple_of(self.n_key_value_heads) {
            let why = format!("it must divide n_heads, {}", self.n_heads);
            return Err(Error::field("n_key_value_heads", self.n_key_value_heads, &why));
        }
        self.validate_mlp()?;
        if !self.norms.eps.is_finite() || self.norms.eps < 0.0 {
            return Err(Error::field("eps", self.norms.eps, "it must be a number, zero or above"));
        }
        if let PerLayer::Each(layers) = &self.attention.reach {
            if layers.len() != self.n_layers {
                let why = format!("it must have one entry for each of the {} layers", self.n_layers);
                return Err(Error::field("attention.reach", format!("a list of {}", layers.len()), &why));
            }
        }
        if self.attention.reach.values().contains(&Reach::Window(0)) {
            return Err(Error::field("window_size", 0, "a window holds at least the query's own position"));
        }
        if let Positions::Rotary { global, local } = &self.positions {
            for rotary in std::iter::once(global).chain(local) {
                self.validate_rotary(rotary)?;
            }
        }
        if self.parallel_attn_mlp && self.norms.position != NormPosition::Before {
            return Err(Error::field("parallel_attn_mlp", true, "a parallel block has its norms before it"));
        }
        Ok(())
    }

    fn validate_mlp(&self) -> Result<()> {
        let Some(mlp) = &self.mlp else { return Ok(()) };
        if mlp.d_mlp == 0 || mlp.d_mlp > MAX_SIZE {
            return Err(Error::field("d_mlp", mlp.d_mlp, "an MLP has at least one neuron, and at most 2^28"));
        }
        if mlp.activation == Activation::SoluLn && mlp.kind != MlpKind::Plain {
            return Err(Error::field("act_fn", "solu_ln", "it belongs to a plain MLP"));
        }
        if let MlpKind::Experts(experts) = &mlp.kind {
            if experts.experts_per_token == 0 || experts.experts_per_token > experts.num_experts {
                let why = format!("it must be between 1 and the number of experts, {}", experts.num_experts);
                return Err(Error::field("experts_per_token", experts.experts_per_token, &why));
            }
        }
        Ok(())
    }

    fn validate_rotary(&self, rotary: &Rotary) -> Result<()> {
        if rotary.dim == 0 || !rotary.dim.is_multiple_of(2) || rotary.dim > self.d_head {
            let why = format!("it must be even and at most d_head, {}", self.d_head);
            return Err(Error::field("rotary.dim", rotary.dim, &why));
        }
        Ok(())
    }
}
