//! A model in which each query head has keys and values of its own.

use tch::Tensor;

use super::attention::Attention;
use super::linear::Linear;
use super::norm::Norm;
use super::Transformer;
use crate::config::{Heads, QkNorm};
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Error, Result};

impl Transformer {
    /// The same function, with keys and values for each query head: those of its group, repeated. Where heads share none, the model itself.
    pub(crate) fn ungrouped(&self) -> Result<Transformer> {
        let config = self.config();
        let heads = (0..config.n_layers).map(|layer| config.heads(layer));
        if !heads.into_iter().any(Heads::is_grouped) {
            return Ok(self.clone());
        }
        self.check_plain_heads()?;
        let mut weights = self.weights().clone();
        for block in &mut weights.blocks {
            block.attn = block.attn.ungrouped()?;
        }
        Ok(Transformer::new(Config { n_key_value_heads: config.n_heads, ..config.clone() }, weights))
    }
}

impl Transformer {
    /// That each layer has the same heads, whose queries, keys and values are linear in what attention reads, and whose outputs are linear
    /// in what they mix.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`].
    pub(crate) fn check_plain_heads(&self) -> Result<()> {
        let Config { attention, d_head, .. } = self.config();
        let why = match attention {
            it if it.latent.is_some() => "made from latents",
            it if it.experts.is_some() => "a mixture, whose heads differ from token to token",
            it if it.gate.is_some() => "multiplied by gates",
            it if it.heads.values().iter().any(Option::is_some) => "not the same number in each layer",
            it if it.d_value.is_some_and(|d_value| d_value != *d_head) => "wider or narrower for values than for keys",
            _ => return Ok(()),
        };
        Err(Error::unsupported(format!(
            "heads need queries, keys and values of their own that are linear in what attention reads, and this model's are {why}"
        )))
    }
}

impl Attention {
    fn ungrouped(&self) -> Result<Attention> {
        let (heads, groups, width) = (self.n_heads, self.n_kv_heads, self.d_head);
        let group_of = |head: i64| head / (heads / groups);
        let queries = 0..heads;
        let keys = (0..heads).map(|head| heads + group_of(head));
        let values = (0..heads).map(|head| heads + groups + group_of(head));
        let rows: Vec<i64> =
            queries.chain(keys).chain(values).flat_map(|head| head * width..(head + 1) * width).collect();
        let chosen = |x: &SharedTensor| select(x, &rows);
        let qkv = Linear { weight: chosen(&self.qkv.weight)?, bias: self.qkv.bias.as_ref().map(chosen).transpose()? };
        let k_norm = match &self.k_norm {
            None => None,
            Some(norm) => {
                let heads: Vec<i64> = (0..heads).map(group_of).collect();
                let entries = heads.iter().flat_map(|head| head * width..(head + 1) * width).collect::<Vec<i64>>();
                // One gain for all heads, one for each, or one for the entries of all heads side by side.
                let of_heads = |x: &SharedTensor| -> Result<SharedTensor> {
                    match (x.dim(), self.qk_norm) {
                        (1, Some(QkNorm::AllHeads(_))) => select(x, &entries),
                        (1, _) => Ok(x.clone()),
                        _ => select(x, &heads),
                    }
                };
                let w = norm.w.as_ref().map(of_heads).transpose()?;
                let b = norm.b.as_ref().map(of_heads).transpose()?;
                Some(Norm { w, b, ..norm.clone() })
            }
        };
        Ok(Attention { qkv, k_norm, n_kv_heads: self.n_heads, ..self.clone() })
    }
}

/// These rows of a weight.
fn select(x: &SharedTensor, rows: &[i64]) -> Result<SharedTensor> {
    Ok(x.f_index_select(0, &Tensor::f_from_slice(rows)?.f_to_device(x.device())?)?.into())
}
