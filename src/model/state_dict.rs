//! Weights by TransformerLens' names.

use tch::Tensor;

use super::attention::Attention;
use super::block::MlpOrExperts;
use super::linear::Linear;
use super::mlp::Act;
use super::norm::Norm;
use super::Transformer;
use crate::unchecked::threads::SharedTensor;
use crate::Result;

impl Transformer {
    /// The tensors that the weights are kept in, by name: handles on the model's own memory, as an optimizer needs them.
    ///
    /// Queries, keys and values are one matrix; a tied unembedding is the embedding, and not repeated.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let weights = self.weights();
        let mut all = Vec::new();
        let mut add = |name: String, tensor: Option<&Tensor>| {
            if let Some(tensor) = tensor {
                all.push((name, tensor.shallow_clone()));
            }
        };
        let norm = |add: &mut dyn FnMut(String, Option<&Tensor>), name: String, norm: &Norm| {
            add(format!("{name}.w"), norm.w.as_deref());
            add(format!("{name}.b"), norm.b.as_deref());
        };
        add("embed.W_E".into(), Some(&weights.embed.w_e));
        norm(&mut add, "embed.ln".into(), &weights.embed.ln);
        add("pos_embed.W_pos".into(), weights.embed.w_pos.as_deref());
        for (l, block) in weights.blocks.iter().enumerate() {
            let linear = |add: &mut dyn FnMut(String, Option<&Tensor>), name: &str, linear: &super::linear::Linear| {
                add(format!("blocks.{l}.{name}.weight"), Some(&linear.weight));
                add(format!("blocks.{l}.{name}.bias"), linear.bias.as_deref());
            };
            norm(&mut add, format!("blocks.{l}.ln1"), &block.ln1);
            linear(&mut add, "attn.qkv", &block.attn.qkv);
            if let (Some(q), Some(k)) = (&block.attn.q_norm, &block.attn.k_norm) {
                norm(&mut add, format!("blocks.{l}.attn.q_norm"), q);
                norm(&mut add, format!("blocks.{l}.attn.k_norm"), k);
            }
            add(format!("blocks.{l}.attn.sinks"), block.attn.sinks.as_deref());
            linear(&mut add, "attn.o", &block.attn.o);
            norm(&mut add, format!("blocks.{l}.ln1_post"), &block.ln1_post);
            norm(&mut add, format!("blocks.{l}.ln2"), &block.ln2);
            match &block.mlp {
                None => {}
                Some(MlpOrExperts::Mlp(mlp)) => {
                    linear(&mut add, "mlp.in", &mlp.w_in);
                    if let Some(gate) = &mlp.gate {
                        linear(&mut add, "mlp.gate", gate);
                    }
                    add(format!("blocks.{l}.mlp.b_product"), mlp.b_product.as_deref());
                    if let Some(ln) = &mlp.ln {
                        norm(&mut add, format!("blocks.{l}.mlp.ln"), ln);
                    }
                    linear(&mut add, "mlp.out", &mlp.w_out);
                }
                Some(MlpOrExperts::Experts(experts)) => {
                    linear(&mut add, "mlp.router", &experts.router);
                    for (e, expert) in experts.experts.iter().enumerate() {
                        linear(&mut add, &format!("mlp.experts.{e}.in"), &expert.w_in);
                        linear(&mut add, &format!("mlp.experts.{e}.gate"), &expert.gate);
                        linear(&mut add, &format!("mlp.experts.{e}.out"), &expert.w_out);
                    }
                }
            }
            norm(&mut add, format!("blocks.{l}.ln2_post"), &block.ln2_post);
        }
        norm(&mut add, "ln_final".into(), &weights.unembed.ln_final);
        if weights.unembed.u.weight.data_ptr() != weights.embed.w_e.data_ptr() {
            add("unembed.weight".into(), Some(&weights.unembed.u.weight));
        }
        add("unembed.b_U".into(), weights.unembed.u.bias.as_deref());
        all
    }

    /// How many parameters the model has.
    pub fn n_params(&self) -> usize {
        self.parameters().iter().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// The weights by TransformerLens' names and in its shapes, as views of the model's own memory: what
    /// [`Load::state_dict`](crate::Load::state_dict) reads.
    ///
    /// `embed.W_E` `[d_vocab, d_model]`, `pos_embed.W_pos` `[n_ctx, d_model]`, `blocks.0.attn.W_Q`
    /// `[head, d_model, d_head]`, `blocks.0.attn.b_Q` `[head, d_head]`, `blocks.0.attn.W_O` `[head, d_head, d_model]`,
    /// `blocks.0.mlp.W_in` `[d_model, d_mlp]`, `unembed.W_U` `[d_model, d_vocab_out]`, and so on; with grouped-query
    /// attention `_W_K` and its like `[kv_head, d_model, d_head]`; experts as `blocks.0.mlp.experts.3.W_in.weight`
    /// `[d_mlp, d_model]`. What TransformerLens has no name for: a gated MLP's `b_gate` and `b_up`, which it leaves
    /// out, and xIELU's `act_fn.positive` and `act_fn.negative`, its alphas as they are used.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let (name, w_q) = model.state_dict()?.into_iter().find(|(name, _)| name.ends_with("W_Q")).unwrap();
    /// assert_eq!(name, "blocks.0.attn.W_Q");
    /// assert_eq!(w_q.size(), [4, 128, 32]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// libtorch's own.
    pub fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        let weights = self.weights();
        let mut all = Named::default();
        all.add("embed.W_E", &weights.embed.w_e);
        all.norm("embed.ln", &weights.embed.ln);
        all.maybe("pos_embed.W_pos", &weights.embed.w_pos);
        for (l, block) in weights.blocks.iter().enumerate() {
            let at = |name: &str| format!("blocks.{l}.{name}");
            all.norm(&at("ln1"), &block.ln1);
            all.attention(&at("attn"), &block.attn)?;
            all.norm(&at("ln1_post"), &block.ln1_post);
            all.norm(&at("ln2"), &block.ln2);
            match &block.mlp {
                None => {}
                Some(MlpOrExperts::Mlp(mlp)) => {
                    all.add(&at("mlp.W_in"), &mlp.w_in.w()?); // [d_model, d_mlp]
                    match &mlp.gate {
                        None => all.maybe(&at("mlp.b_in"), &mlp.w_in.bias),
                        Some(gate) => {
                            all.maybe(&at("mlp.b_up"), &mlp.w_in.bias);
                            all.add(&at("mlp.W_gate"), &gate.w()?); // [d_model, d_mlp]
                            all.maybe(&at("mlp.b_gate"), &gate.bias);
                            all.maybe(&at("mlp.b_in"), &mlp.b_product);
                        }
                    }
                    if let Some(ln) = &mlp.ln {
                        all.norm(&at("mlp.ln"), ln);
                    }
                    all.add(&at("mlp.W_out"), &mlp.w_out.w()?); // [d_mlp, d_model]
                    all.maybe(&at("mlp.b_out"), &mlp.w_out.bias);
                    all.act(&at("mlp.act_fn"), &mlp.act);
                }
                Some(MlpOrExperts::Experts(mixture)) => {
                    all.linear(&at("mlp.W_gate"), &mixture.router);
                    for (e, expert) in mixture.experts.iter().enumerate() {
                        let at = |name: &str| at(&format!("mlp.experts.{e}.{name}"));
                        all.linear(&at("W_in"), &expert.w_in);
                        all.linear(&at("W_gate"), &expert.gate);
                        all.linear(&at("W_out"), &expert.w_out);
                    }
                    all.act(&at("mlp.act_fn"), &mixture.act);
                }
            }
            all.norm(&at("ln2_post"), &block.ln2_post);
        }
        all.norm("ln_final", &weights.unembed.ln_final);
        all.add("unembed.W_U", &weights.unembed.u.w()?); // [d_model, d_vocab_out]
        all.maybe("unembed.b_U", &weights.unembed.u.bias);
        Ok(all.0)
    }

    /// Whether the unembedding lies in the embedding's memory.
    pub(crate) fn is_tied(&self) -> bool {
        self.weights().is_tied()
    }
}

/// Tensors by name, gathered.
#[derive(Default)]
struct Named(Vec<(String, Tensor)>);

impl Named {
    fn add(&mut self, name: &str, tensor: &Tensor) {
        self.0.push((name.into(), tensor.shallow_clone()));
    }

    fn maybe(&mut self, name: &str, tensor: &Option<SharedTensor>) {
        if let Some(tensor) = tensor {
            self.add(name, tensor);
        }
    }

    fn norm(&mut self, name: &str, norm: &Norm) {
        self.maybe(&format!("{name}.w"), &norm.w);
        self.maybe(&format!("{name}.b"), &norm.b);
    }

    /// A router or an expert's, which TransformerLens has in libtorch's own orientation, `[out, in]`.
    fn linear(&mut self, name: &str, linear: &Linear) {
        self.add(&format!("{name}.weight"), &linear.weight);
        self.maybe(&format!("{name}.bias"), &linear.bias);
    }

    fn attention(&mut self, name: &str, attn: &Attention) -> Result<()> {
        let (n, n_kv, d_head) = (attn.n_heads, attn.n_kv_heads, attn.d_head);
        let underscore = if n == n_kv { "" } else { "_" };
        for (part, start, heads) in [("Q", 0, n), ("K", n, n_kv), ("V", n + n_kv, n_kv)] {
            let underscore = if part == "Q" { "" } else { underscore };
            let linear = attn.qkv.narrow(start * d_head, heads * d_head)?;
            let w = linear.weight.f_view([heads, d_head, -1])?.f_transpose(1, 2)?; // [head, d_model, d_head]
            self.add(&format!("{name}.{underscore}W_{part}"), &w);
            if let Some(bias) = &linear.bias {
                self.add(&format!("{name}.{underscore}b_{part}"), &bias.f_view([heads, d_head])?);
            }
        }
        if let (Some(q_norm), Some(k_norm)) = (&attn.q_norm, &attn.k_norm) {
            self.norm(&format!("{name}.q_norm"), q_norm);
            self.norm(&format!("{name}.k_norm"), k_norm);
        }
        self.maybe(&format!("{name}.sinks"), &attn.sinks);
        self.add(&format!("{name}.W_O"), &attn.w_o()?); // [head, d_head, d_model]
        self.maybe(&format!("{name}.b_O"), &attn.o.bias);
        Ok(())
    }

    fn act(&mut self, name: &str, act: &Act) {
        if let Some(parameters) = &act.xielu {
            for (parameter, tensor) in ["positive", "negative", "beta", "eps"].into_iter().zip(parameters) {
                self.add(&format!("{name}.{parameter}"), tensor);
            }
        }
    }
}
