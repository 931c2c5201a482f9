//! A model in which each query head has keys and values of its own.

use tch::Tensor;

use super::attention::Attention;
use super::linear::Linear;
use super::norm::Norm;
use super::Transformer;
use crate::config::QkNorm;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Result};

impl Transformer {
    /// The same function, with keys and values for each query head: those of its group, repeated. Where heads share none, the model itself.
    pub(crate) fn ungrouped(&self) -> Result<Transformer> {
        let config = self.config();
        if config.n_key_value_heads == config.n_heads {
            return Ok(self.clone());
        }
        let mut weights = self.weights().clone();
        for block in &mut weights.blocks {
            block.attn = block.attn.ungrouped()?;
        }
        Ok(Transformer::new(Config { n_key_value_heads: config.n_heads, ..config.clone() }, weights))
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
