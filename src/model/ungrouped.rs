//! A model in which each query head has keys and values of its own.

use tch::Tensor;

use super::attention::Attention;
use super::dynamic_mask::DynamicMask;
use super::linear::Linear;
use super::norm::Norm;
use super::Transformer;
use crate::config::{GateFunction, HeadGate, Heads, Positions, QkNorm};
use crate::tensor::scalar::Scalar;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Error, Result};

impl Transformer {
    /// The same function, with keys and values for each query head: those of its group, repeated. Heads that a router chooses become those
    /// of all its experts, with the router's weight as a gate. Where heads share no keys, the model itself.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where a router's heads have something of their own by their place among the chosen ones.
    pub(crate) fn ungrouped(&self) -> Result<Transformer> {
        let config = self.config();
        let by_place = config.attention.sinks
            || config.attention.relative_bias.is_some()
            || matches!(config.positions, Positions::Alibi { .. });
        let grouped = (0..config.n_layers).any(|layer| config.heads(layer).is_grouped());
        if !grouped && config.attention.experts.is_none() {
            return Ok(self.clone());
        }
        let differs = |layer: usize| {
            config.shares_keys_of(layer).is_some_and(|of| config.heads(of).query != config.heads(layer).query)
        };
        if (0..config.n_layers).any(differs) {
            return Err(Error::unsupported(
                "a layer looks at keys and values of an earlier one that has another number of heads, so these cannot stand apart",
            ));
        }
        if config.attention.experts.is_some() && by_place {
            return Err(Error::unsupported(
                "the heads of a router's experts cannot stand apart: this model's sinks or biases by distance belong to their places among the chosen ones",
            ));
        }
        let mut weights = self.weights()?.clone();
        for block in &mut weights.blocks {
            block.attn = block.attn.ungrouped()?;
            if let Some(cross) = &mut block.cross {
                cross.attn = cross.attn.ungrouped()?;
            }
        }
        let of_layer =
            |heads: &Option<Heads>| heads.map(|Heads { query, d_head, .. }| Heads { query, key_value: query, d_head });
        let mut attention = config.attention.clone();
        attention.heads = attention.heads.map(of_layer);
        let mut n_heads = config.n_heads;
        if let Some(experts) = attention.experts.take() {
            n_heads = experts.num_experts * config.n_key_value_heads;
            attention.gate = Some(HeadGate { per_head: true, function: GateFunction::Router(experts) });
        }
        let config = Config { n_heads, n_key_value_heads: n_heads, attention, ..config.clone() };
        let model = Transformer::new(config, weights);
        Ok(if self.splices().is_empty() { model } else { model.with_splices(self.splices().clone()) })
    }

    /// Whether queries, keys and values are linear in what attention reads, and nothing else is made of it.
    pub(crate) fn heads_read_linearly(&self) -> bool {
        let attention = &self.config().attention;
        attention.latent.is_none() && attention.gate.is_none() && attention.experts.is_none()
    }
}

impl Attention {
    fn ungrouped(&self) -> Result<Attention> {
        let groups = self.n_kv_heads;
        let (heads, gate, gate_function) = match &self.router {
            Some(router) => {
                let heads = router.num_experts() * groups;
                (heads, Some(router.gates()?), Some(GateFunction::Router(router.chosen_of())))
            }
            None => (self.n_heads, self.gate.clone(), self.gate_function),
        };
        // Each of a router's experts has a head for each key and value.
        let group_of = |head: i64| if self.router.is_some() { head % groups } else { head / (heads / groups) };
        let rows = |start: i64, head: i64, width: i64| start + head * width..start + (head + 1) * width;
        let (width, d_value) = (self.d_head, self.d_value);
        let (of_keys, of_values) = (heads * width, (heads + groups) * width);
        // In cross-attention keys and values come first, in a product of their own.
        let before = if self.kv.is_some() { of_keys } else { 0 };
        let queries = (0..heads).flat_map(|head| rows(0, head, width));
        let keys = (0..heads).flat_map(|head| rows(of_keys - before, group_of(head), width));
        let values = (0..heads).flat_map(|head| rows(of_values - before, group_of(head), d_value));
        let (qkv, kv) = match &self.kv {
            Some(kv) => (self.qkv.clone(), Some(of_rows(kv, &keys.chain(values).collect::<Vec<i64>>())?)),
            None if self.shares.is_some() => (self.qkv.clone(), None),
            None => (of_rows(&self.qkv, &queries.chain(keys).chain(values).collect::<Vec<i64>>())?, None),
        };
        let dynamic_mask = match &self.dynamic_mask {
            Some(mask) => Some(mask.ungrouped(&(0..heads).map(group_of).collect::<Vec<i64>>(), d_value)?),
            None => None,
        };
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
        let (router, n_heads, n_kv_heads) = (None, heads, heads);
        Ok(Attention {
            qkv,
            kv,
            k_norm,
            router,
            gate,
            gate_function,
            dynamic_mask,
            n_heads,
            n_kv_heads,
            ..self.clone()
        })
    }
}

impl DynamicMask {
    /// The mask of heads with values of their own, of these groups. It reads the values of all groups, of which each head has a copy: every
    /// copy has an equal share.
    fn ungrouped(&self, group_of: &[i64], d_value: i64) -> Result<DynamicMask> {
        let copies = (group_of.len() as i64 / self.a.size()[0]).max(1);
        let columns: Vec<i64> = group_of.iter().flat_map(|group| group * d_value..(group + 1) * d_value).collect();
        let columns = Tensor::f_from_slice(&columns)?.f_to_device(self.a.device())?;
        let dt = of_rows(&self.dt, group_of)?;
        let weight = dt.weight.f_index_select(1, &columns)?.div_number(copies as f64)?.into();
        Ok(DynamicMask { a: select(&self.a, group_of)?, dt: Linear { weight, ..dt }, keep: self.keep })
    }
}

/// These rows of a map.
fn of_rows(linear: &Linear, rows: &[i64]) -> Result<Linear> {
    let bias = linear.bias.as_ref().map(|bias| select(bias, rows)).transpose()?;
    Ok(Linear { weight: select(&linear.weight, rows)?, bias })
}

/// These rows of a weight.
fn select(x: &SharedTensor, rows: &[i64]) -> Result<SharedTensor> {
    Ok(x.f_index_select(0, &Tensor::f_from_slice(rows)?.f_to_device(x.device())?)?.into())
}
