//! [`HeadRouter`]: heads that a router chooses for each token.

use tch::Tensor;

use super::linear::Linear;
use super::parameters::module;
use super::part::Part;
use super::routing;
use crate::config::{Experts, HeadExperts, Routing};
use crate::hook;
use crate::run::{Flow, Tap};
use crate::{Config, Result};

/// Each token has the queries and the output weights of the few experts that a router weighs most, and all share keys and values
/// (Zhang et al. 2022, "Mixture of Attention Heads").
#[derive(Clone, Debug)]
pub(crate) struct HeadRouter {
    /// `d_model` to `num_experts`.
    pub(crate) router: Linear,
    experts: Experts,
    /// The heads of an expert: one for each key and value.
    heads: i64,
}

// The router has no bias: its part stands in both places.
module!(HeadRouter, () => (), { router: (Part::HeadRouter, Part::HeadRouter) } plain { experts, heads });

/// The experts that tokens go to, and their weights: `[batch, pos, chosen]` each.
pub(crate) struct ChosenHeads {
    pub(crate) weights: Tensor,
    pub(crate) indices: Tensor,
}

impl HeadRouter {
    pub(crate) fn new(config: &Config, layer: usize, experts: HeadExperts, router: Linear) -> Self {
        let HeadExperts { num_experts, experts_per_token } = experts;
        let experts = Experts::new(num_experts, experts_per_token, Routing::softmax_of_chosen());
        HeadRouter { router, experts, heads: config.heads(layer).key_value as i64 }
    }

    pub(crate) fn num_experts(&self) -> i64 {
        self.experts.num_experts as i64
    }

    /// How many experts there are, and how many of them a token goes to.
    pub(crate) fn chosen_of(&self) -> HeadExperts {
        let Experts { num_experts, experts_per_token, .. } = self.experts;
        HeadExperts { num_experts, experts_per_token }
    }

    /// The map that [`gates`] reads the stream with: each head has its expert's row.
    pub(crate) fn gates(&self) -> Result<Linear> {
        let weight = self.router.weight.f_repeat_interleave_self_int(self.heads, 0, None)?; // [expert · heads, d_model]
        Ok(Linear { weight: weight.into(), bias: None })
    }

    /// The experts of the tokens of a stream: `[batch, pos, d_model]`.
    pub(crate) fn route(&self, x: &Tensor, layer: usize, tap: &mut Tap) -> Flow<ChosenHeads> {
        let (weights, indices) = routing::route(&self.experts, None, &self.router.forward(x)?)?;
        let weights = tap.at(hook::head_weights(layer), weights)?; // [batch, pos, expert]
        let indices = tap.at(hook::head_indices(layer), indices)?; // [batch, pos, chosen]
        Ok(self.chosen(&weights, indices)?)
    }

    /// The weights of these experts, of those of all: `[batch, pos, expert]`.
    pub(crate) fn chosen(&self, weights: &Tensor, indices: Tensor) -> Result<ChosenHeads> {
        Ok(ChosenHeads { weights: weights.f_gather(-1, &indices, false)?, indices })
    }

    /// The queries of the chosen experts, one expert after the other: `[batch, pos, expert · heads, d_head]` to
    /// `[batch, pos, chosen · heads, d_head]`.
    pub(crate) fn queries(&self, all: &Tensor, chosen: &ChosenHeads) -> Result<Tensor> {
        let size = all.size();
        let (n_experts, width) = (size[2] / self.heads, self.heads * size[3]);
        let all = all.f_reshape([size[0], size[1], n_experts, width])?;
        let queries = all.f_gather(2, &self.wide(chosen, width)?, false)?; // [batch, pos, chosen, heads · d_head]
        Ok(queries.f_view([size[0], size[1], -1, size[3]])?)
    }

    /// What the chosen experts' heads have mixed, by their weights, at their places among all heads, and zeros elsewhere:
    /// `[batch, pos, chosen · heads, d_head]` to `[batch, pos, expert · heads, d_head]`.
    pub(crate) fn spread(&self, z: &Tensor, chosen: &ChosenHeads) -> Result<Tensor> {
        let size = z.size();
        let width = self.heads * size[3];
        let options = (z.f_kind()?, z.device());
        let weights = chosen.weights.f_to_kind(options.0)?.f_unsqueeze(-1)?;
        let z = z.f_reshape([size[0], size[1], -1, width])?.f_mul(&weights)?; // [batch, pos, chosen, heads · d_head]
        let all = Tensor::f_zeros([size[0], size[1], self.experts.num_experts as i64, width], options)?;
        let spread = all.f_scatter_add(2, &self.wide(chosen, width)?, &z)?;
        Ok(spread.f_view([size[0], size[1], -1, size[3]])?)
    }

    /// Gradients at what [`HeadRouter::spread`] gives as gradients at what it reads: `[row, pos, expert · heads · d_head]` to
    /// `[row, pos, chosen · heads, d_head]`, of one batch row.
    pub(crate) fn pull(&self, gradients: &Tensor, chosen: &ChosenHeads, d_head: i64) -> Result<Tensor> {
        let size = gradients.size();
        let (width, pos) = (self.heads * d_head, size[1]);
        let of_experts = gradients.f_view([size[0], pos, self.experts.num_experts as i64, width])?;
        let index = self.wide(chosen, width)?.f_narrow(1, 0, pos)?; // [1, pos, chosen, width]
        let shape = [size[0], pos, index.size()[2], width];
        let gathered = of_experts.f_gather(2, &index.f_expand(shape, false)?, false)?;
        let weights = chosen.weights.f_narrow(1, 0, pos)?.f_to_kind(gathered.f_kind()?)?.f_unsqueeze(-1)?;
        Ok(gathered.f_mul(&weights)?.f_view([size[0], pos, -1, d_head])?)
    }

    /// For each choice, what [`HeadRouter::spread`] makes of its heads alone.
    pub(crate) fn by_choice(&self, z: &Tensor, chosen: &ChosenHeads) -> Result<Vec<Tensor>> {
        let one = |choice: i64| -> Result<Tensor> {
            let weights = chosen.weights.f_narrow(-1, choice, 1)?;
            let indices = chosen.indices.f_narrow(-1, choice, 1)?;
            self.spread(&z.f_narrow(2, choice * self.heads, self.heads)?, &ChosenHeads { weights, indices })
        };
        (0..chosen.indices.size()[2]).map(one).collect()
    }

    /// Values of all heads at `dim`, `expert · heads` of them, of which one expert's are not zero, to that expert's: `heads`.
    pub(crate) fn of_one_expert(&self, all: &Tensor, dim: usize) -> Result<Tensor> {
        let mut size = all.size();
        size[dim] /= self.heads;
        size.insert(dim + 1, self.heads);
        Ok(all.f_reshape(size)?.f_sum_dim_intlist([dim as i64].as_slice(), false, None)?)
    }

    /// The index of each chosen expert's entries: `[batch, pos, chosen, width]`.
    fn wide(&self, chosen: &ChosenHeads, width: i64) -> Result<Tensor> {
        let size = chosen.indices.size();
        Ok(chosen.indices.f_unsqueeze(-1)?.f_expand([size[0], size[1], size[2], width], false)?)
    }
}

/// The weight of each head's expert, and zero where a router does not choose it: `[batch, pos, head, 1]`. Each head has its expert's row of
/// `reader`. They read one stream, `[batch, pos, d_model]`, or one each, `[batch, pos, head, d_model]`, with a choice for each.
pub(super) fn gates(x: &Tensor, reader: &Linear, of: HeadExperts) -> Result<Tensor> {
    let HeadExperts { num_experts, experts_per_token } = of;
    let n_heads = reader.weight.size()[0];
    let n_experts = num_experts as i64;
    let heads = n_heads / n_experts; // of an expert
    let rows = reader.weight.f_view([n_experts, heads, -1])?.f_select(1, 0)?; // [expert, d_model]
    let logits = x.f_matmul(&rows.f_tr()?)?; // [batch, pos, expert] or [batch, pos, head, expert]
    let experts = Experts::new(num_experts, experts_per_token, Routing::softmax_of_chosen());
    let weights = routing::route(&experts, None, &logits)?.0.f_to_kind(x.f_kind()?)?;
    let size = x.size();
    let weights = match x.dim() {
        3 => weights.f_unsqueeze(-1)?.f_expand([size[0], size[1], n_experts, heads], false)?,
        // Of each head's choice, the weight of its own expert.
        _ => {
            let apart = weights.f_view([size[0], size[1], n_experts, heads, n_experts])?;
            apart.f_diagonal(0, 2, 4)?.f_transpose(2, 3)? // [batch, pos, expert, head of the expert]
        }
    };
    Ok(weights.f_reshape([size[0], size[1], n_heads, 1])?)
}
