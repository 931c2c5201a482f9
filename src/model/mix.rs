//! Attention's second half: what each query takes from the values, by the pattern of its scores.

use std::ops::Range;
use std::rc::Rc;

use tch::Tensor;

use super::attention::Attention;
use super::context::{Context, FusedMask, AT_ONCE};
use super::indexer::Choice;
use super::key_value_store::held::{Held, HeldKeys, KeyValueBlock, NewKeys};
use super::latent::Latent;
use super::norm::constant_if;
use crate::hook::Site;
use crate::run::{Flow, Tap};
use crate::tensor::scalar::{full, Scalar};
use crate::Result;

/// Queries, and what they look at.
struct Attended<'m> {
    /// `[batch, head, query, d_head]`
    q: Tensor,
    blocks: Vec<KeyValueBlock>,
    /// What makes values of mixed latents, where queries look at latents.
    latent: Option<&'m Latent>,
    /// The keys that each query sees, where an indexer has chosen some.
    choice: Option<Rc<Choice>>,
}

impl Attention {
    /// Values mixed by the pattern, `[batch, pos, head, d_value]`, for the queries `[batch, pos, head, d_head]`.
    ///
    /// Scores and pattern are formed where a hook point shows them.
    /// Without new keys, a layer looks at those of an earlier one.
    pub(super) fn mix(&self, q: &Tensor, new: Option<&NewKeys<'_>>, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let frozen = tap.plan.rules().frozen_patterns;
        let q = constant_if(frozen, q.shallow_clone())?;
        let Attended { q, blocks, latent, choice } = match new {
            Some(new) => {
                let keys = constant_if(frozen, new.keys.shallow_clone())?;
                let records = [&q, &keys, new.values].iter().any(|x| x.requires_grad());
                let new = NewKeys { keys: &keys, records, ..*new };
                self.attended(q.f_transpose(1, 2)?, &new, context)?
            }
            None => {
                let blocks = context.shared_blocks(self.shares)?;
                Attended { q: q.f_transpose(1, 2)?, blocks, latent: None, choice: None }
            }
        };
        let choice = choice.as_deref();
        // Values that make a mask are no constants, so a frozen pattern is formed and then made one.
        let forms = tap.plan.forms_pattern([self.point(Site::AttnScores), self.point(Site::Pattern)])
            || frozen && self.dynamic_mask.is_some();
        let z = match (forms, &blocks[..]) {
            (true, _) => self.mix_observed(&q, &blocks, choice, context, tap)?,
            (false, [block]) if self.is_plain(&q, block) && self.dynamic_mask.is_none() && choice.is_none() => context
                .without_padding(self.mix_unobserved(&q, block, context)?.f_transpose(1, 2)?)?
                .f_transpose(1, 2)?,
            (false, _) => {
                let z = self.mix_blocks(&q, &blocks, choice, context)?;
                context.without_padding(z.f_transpose(1, 2)?)?.f_transpose(1, 2)?
            }
        }; // [batch, head, pos, d_value], or the rank of the latents
        let z = match latent {
            Some(latent) => latent.values_of_latents(&z)?,
            None => z,
        };
        Ok(z.f_transpose(1, 2)?)
    }

    /// What the queries `[batch, head, query, d_head]` look at.
    fn attended(&self, q: Tensor, new: &NewKeys<'_>, context: &Context) -> Result<Attended<'_>> {
        let Held { keys, index } = context.held(self.source(), self.layer, new)?;
        if let Some(indexer) = &self.indexer {
            context.choose(match new.index {
                Some(reads) => indexer.choose(reads, &index, context)?,
                None => None,
            });
        }
        let choice = context.choice();
        let blocks = match (keys, &self.latent) {
            (HeldKeys::KeysAndValues(blocks), _) => blocks,
            (HeldKeys::Latents(blocks), Some(latent)) => {
                let n_keys = blocks.iter().map(|block| block.size()[2]).sum::<i64>();
                let n_past = n_keys - q.size()[2];
                if n_past > 0 && !new.records && latent.attends_to_latents(q.size()[2], n_keys) {
                    let block = |held: Tensor| {
                        let values = held.f_narrow(-1, 0, latent.rank())?;
                        Ok(KeyValueBlock { keys: held, values })
                    };
                    let blocks = blocks.into_iter().map(block).collect::<Result<_>>()?;
                    return Ok(Attended { q: latent.queries_for_latents(&q)?, blocks, latent: Some(latent), choice });
                }
                past_and_new(&blocks, n_past, latent, new)?
            }
            (HeldKeys::Latents(_), None) => return Err(crate::Error::Internal("a layer without latents holds some")),
        };
        let values = |block: KeyValueBlock| match &self.differential {
            // [batch, kv_head, key, 2 d_head]
            Some(differential) => Ok(KeyValueBlock { values: differential.values(&block.values)?, ..block }),
            None => Ok(block),
        };
        Ok(Attended { q, blocks: blocks.into_iter().map(values).collect::<Result<_>>()?, latent: None, choice })
    }

    /// Values mixed by a pattern that hook points show: `[batch, head, pos, d_value]`.
    fn mix_observed(
        &self,
        q: &Tensor,
        blocks: &[KeyValueBlock],
        choice: Option<&Choice>,
        context: &Context,
        tap: &mut Tap,
    ) -> Flow<Tensor> {
        let (source, layer) = (self.source(), self.layer);
        let mut scores = self.all_scores(q, blocks, choice, context)?;
        let first = context.first(source, layer);
        if first > 0 {
            // Hook points show all keys. Those before the first lie outside of the window.
            let size = scores.size();
            let hidden =
                full(&[size[0], size[1], size[2], first], f64::NEG_INFINITY, (scores.f_kind()?, scores.device()))?;
            scores = Tensor::f_cat(&[hidden, scores], 3)?;
        }
        let scores = tap.at(self.point(Site::AttnScores), scores)?; // [batch, head, query, key]
        let scores = context.open_padding(scores)?;
        let pattern = match self.sinks_after_pattern {
            true => scores.f_softmax(-1, scores.f_kind()?)?,
            false => self.softmax(&scores)?,
        };
        let pattern = context.without_padding(pattern.f_transpose(1, 2)?)?.f_transpose(1, 2)?;
        let frozen = tap.plan.rules().frozen_patterns;
        let pattern = constant_if(frozen, pattern)?;
        let pattern = tap.at(self.point(Site::Pattern), pattern)?; // [batch, head, query, key]
        let seen = if first > 0 { pattern.f_narrow(3, first, pattern.size()[3] - first)? } else { pattern };
        let mut z = self.mixed(&seen, blocks)?; // [batch, head, pos, d_value]
        if let (true, Some(sinks)) = (self.sinks_after_pattern, &self.sinks) {
            let positions = scores.f_logsumexp([-1i64].as_slice(), true)?; // [batch, head, query, 1]
            let share = positions.f_sub(&sinks.f_view([1, -1, 1, 1])?)?.f_sigmoid()?;
            z = z.f_mul(&constant_if(frozen, share)?)?;
        }
        Ok(z)
    }

    /// Values mixed without a pattern that is shown, of one block that has a row for each of the batch: `[batch, head, pos, d_value]`.
    fn mix_unobserved(&self, q: &Tensor, block: &KeyValueBlock, context: &Context) -> Result<Tensor> {
        let size = q.size();
        let entries = size[0] * size[1] * size[2] * block.len();
        let source = self.source();
        let (KeyValueBlock { keys: k, values: v }, first) = (block, context.first(source, self.layer));
        let blocks = std::slice::from_ref(block);
        let mask = context.fused_mask(source, self.layer)?;
        let fusible = self.is_fusible() && !mask.requires_grad();
        match mask {
            FusedMask::InBlocks => self.some_at_a_time(q, blocks, None, context),
            _ if !fusible && entries > AT_ONCE => self.some_at_a_time(q, blocks, None, context),
            _ if !fusible => {
                let scores = self.all_scores(q, blocks, None, context)?;
                self.mixed(&self.softmax(&context.open_padding(scores)?)?, blocks)
            }
            FusedMask::Causal => self.fused(q, k, v, None, true),
            FusedMask::All(keys) => self.fused(q, &columns(k, keys, first)?, &columns(v, keys, first)?, None, false),
            FusedMask::Additive(keys, added) => {
                self.fused(q, &columns(k, keys, first)?, &columns(v, keys, first)?, Some(added), false)
            }
        }
    }

    /// Values mixed without a pattern that is shown, of blocks that rows share or that are latents, or of chosen keys:
    /// `[batch, head, pos, d_value]`. All have one softmax.
    fn mix_blocks(
        &self,
        q: &Tensor,
        blocks: &[KeyValueBlock],
        choice: Option<&Choice>,
        context: &Context,
    ) -> Result<Tensor> {
        let size = q.size();
        let entries = size[0] * size[1] * size[2] * blocks.iter().map(KeyValueBlock::len).sum::<i64>();
        if entries > AT_ONCE && self.dynamic_mask.is_none() {
            return self.some_at_a_time(q, blocks, choice, context);
        }
        let scores = self.all_scores(q, blocks, choice, context)?;
        self.mixed(&self.softmax(&context.open_padding(scores)?)?, blocks)
    }

    /// What is added to scores where the values say what a query sees: `[batch, head, query, key]`.
    fn dynamic(&self, q: &Tensor, blocks: &[KeyValueBlock], context: &Context) -> Result<Option<Tensor>> {
        let Some(dynamic) = &self.dynamic_mask else { return Ok(None) };
        let batch = q.size()[0];
        let values = blocks.iter().map(|block| Ok(block.values.f_repeat([batch / block.values.size()[0], 1, 1, 1])?));
        let values = Tensor::f_cat(&values.collect::<Result<Vec<_>>>()?, 2)?; // [batch, kv_head, key, d_value]
        let added = dynamic.added(&values, q.size()[2], context.scores_mask(self.source(), self.layer)?)?;
        Ok(Some(self.per_query_head(added)?))
    }

    /// Whether libtorch's kernel does all that is done to scores.
    fn is_fusible(&self) -> bool {
        self.soft_cap.is_none() && self.sinks.is_none() && self.disentangled.is_none()
    }

    /// Values mixed by libtorch's kernel: `[batch, head, pos, d_head]`, as all of its arguments.
    fn fused(&self, q: &Tensor, k: &Tensor, v: &Tensor, added: Option<&Tensor>, causal: bool) -> Result<Tensor> {
        if self.router.is_some() {
            let (k, v) = (self.per_query_head(k.shallow_clone())?, self.per_query_head(v.shallow_clone())?);
            let scale = 1.0 / self.scale;
            return Ok(Tensor::f_scaled_dot_product_attention(q, &k, &v, added, 0.0, causal, scale, false)?);
        }
        let grouped = self.n_kv_heads != self.n_heads;
        Ok(Tensor::f_scaled_dot_product_attention(q, k, v, added, 0.0, causal, 1.0 / self.scale, grouped)?)
    }

    /// Values mixed for some queries at a time, where all of them would need a mask, or scores, that grow with the square of the
    /// length: `[batch, head, pos, d_value]`.
    fn some_at_a_time(
        &self,
        q: &Tensor,
        blocks: &[KeyValueBlock],
        choice: Option<&Choice>,
        context: &Context,
    ) -> Result<Tensor> {
        let size = q.size(); // [batch, head, query, d_head]
        let n_keys = blocks.iter().map(KeyValueBlock::len).sum::<i64>();
        let expanded = match blocks {
            [block] if self.is_plain(q, block) && !self.is_fusible() => {
                let (keys, values) = (block.keys.shallow_clone(), block.values.shallow_clone());
                Some([KeyValueBlock { keys: self.per_query_head(keys)?, values: self.per_query_head(values)? }])
            }
            _ => None,
        };
        let blocks = expanded.as_ref().map_or(blocks, |blocks| blocks);
        let step = (AT_ONCE / (size[0] * size[1] * n_keys)).clamp(16, 1024);
        let mut parts = Vec::new();
        for start in (0..size[2]).step_by(step as usize) {
            let queries = start..(start + step).min(size[2]);
            let (keys, mut added) = context.block(self.source(), self.layer, &queries)?;
            if let Some(choice) = choice {
                added = added.f_add(&choice.added(&queries, &keys, added.f_kind()?)?)?;
            }
            let q = columns(q, &queries, 0)?;
            let seen = narrowed(blocks, &keys, context.first(self.source(), self.layer))?;
            parts.push(match &seen[..] {
                [block] if self.is_fusible() && self.is_plain(&q, block) => {
                    self.fused(&q, &block.keys, &block.values, Some(&added), false)?
                }
                _ => {
                    let added = self.added(&q, &seen, Some(&added), (queries, keys), context)?;
                    self.mixed(&self.softmax(&self.scores(&q, &seen, added.as_ref())?)?, &seen)?
                }
            });
        }
        Ok(Tensor::f_cat(&parts, 2)?)
    }

    /// Whether a block has a row for each of the batch, and the heads that keys and values have.
    fn is_plain(&self, q: &Tensor, block: &KeyValueBlock) -> bool {
        let (q, keys) = (q.size(), block.keys.size());
        q[0] == keys[0] && (keys[1] == self.n_kv_heads || keys[1] == self.n_heads)
    }

    /// Keys or values repeated for each query head of their group: `[batch, head, pos, d_head]`.
    fn per_query_head(&self, x: Tensor) -> Result<Tensor> {
        if x.size()[1] == self.n_heads {
            return Ok(x);
        }
        if self.router.is_some() {
            return Ok(x.f_repeat([1, self.n_heads / self.n_kv_heads, 1, 1])?); // one expert after the other
        }
        Ok(x.f_repeat_interleave_self_int(self.n_heads / self.n_kv_heads, 1, None)?)
    }

    /// Keys or values whose query heads come one group after the other.
    fn grouped(&self, x: &Tensor) -> Result<Tensor> {
        match self.router {
            Some(_) => self.per_query_head(x.shallow_clone()),
            None => Ok(x.shallow_clone()),
        }
    }

    /// The scores of all queries and keys that are not outside of every window: `[batch, head, query, key]`.
    fn all_scores(
        &self,
        q: &Tensor,
        blocks: &[KeyValueBlock],
        choice: Option<&Choice>,
        context: &Context,
    ) -> Result<Tensor> {
        let (queries, keys) = (0..q.size()[2], 0..blocks.iter().map(KeyValueBlock::len).sum::<i64>());
        let mask = context.scores_mask(self.source(), self.layer)?;
        let by_contents = match choice {
            Some(choice) => {
                let chosen = choice.added(&queries, &keys, q.f_kind()?)?;
                Some(mask.map(|mask| chosen.f_add(mask)).transpose()?.unwrap_or(chosen))
            }
            None => self.dynamic(q, blocks, context)?,
        };
        let added = self.added(q, blocks, by_contents.as_ref().or(mask), (queries, keys), context)?;
        self.scores(q, blocks, added.as_ref())
    }

    /// What is added to the scores of some queries and keys, both counted from the start: the mask, and what disentangled attention makes of
    /// their distances. `[batch or 1, head or 1, query, key]`.
    fn added(
        &self,
        q: &Tensor,
        blocks: &[KeyValueBlock],
        mask: Option<&Tensor>,
        (queries, keys): (Range<i64>, Range<i64>),
        context: &Context,
    ) -> Result<Option<Tensor>> {
        // Queries that see all positions leave no keys in a store, so there is one block.
        let (Some(disentangled), [block]) = (&self.disentangled, blocks) else {
            return Ok(mask.map(Tensor::shallow_clone));
        };
        let k = self.per_query_head(block.keys.shallow_clone())?;
        let of_distances = disentangled.scores(self, [q, &k], &context.distances(&queries, &keys)?, context)?;
        Ok(Some(match mask {
            Some(mask) => of_distances.f_add(mask)?,
            None => of_distances,
        }))
    }

    /// Scaled, capped and masked scores: `[batch, head, query, key]`.
    fn scores(&self, q: &Tensor, blocks: &[KeyValueBlock], mask: Option<&Tensor>) -> Result<Tensor> {
        let mut scores = match blocks {
            [block] if self.is_plain(q, block) => {
                let k = self.per_query_head(block.keys.shallow_clone())?;
                let (size, keys) = (q.size(), k.size()[2]);
                let shape = [size[0], size[1], size[2], keys];
                let (q, k) = (q.f_flatten(0, 1)?, k.f_flatten(0, 1)?.f_transpose(1, 2)?);
                // Scale and mask ride along with the product, where no cap comes between.
                if let (Some(mask), None) = (mask, self.soft_cap) {
                    let mask = mask.f_expand(shape, false)?.f_flatten(0, 1)?;
                    return Ok(mask.add_product(&q, &k, 1.0, 1.0 / self.scale)?.f_view(shape)?);
                }
                q.f_bmm(&k)?.f_view(shape)?.div_number(self.scale)?
            }
            blocks => {
                let q = q.div_number(self.scale)?;
                let parts = blocks.iter().map(|block| products(&q, &self.grouped(&block.keys)?.f_transpose(2, 3)?));
                Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 3)?
            }
        };
        if let Some(cap) = self.soft_cap {
            scores = scores.div_number(cap)?.f_tanh()?.mul_number(cap)?;
        }
        Ok(match mask {
            Some(mask) => scores.f_add(mask)?,
            None => scores,
        })
    }

    /// Values mixed by a pattern, `[batch, head, query, key]`: `[batch, head, query, d_value]`.
    fn mixed(&self, pattern: &Tensor, blocks: &[KeyValueBlock]) -> Result<Tensor> {
        if let [block] = blocks
            && self.is_plain(pattern, block)
        {
            return Ok(pattern.f_matmul(&self.per_query_head(block.values.shallow_clone())?)?);
        }
        let (mut start, mut sum) = (0, None::<Tensor>);
        for block in blocks {
            let part = products(&pattern.f_narrow(3, start, block.len())?, &self.grouped(&block.values)?)?;
            start += block.len();
            sum = Some(match sum {
                Some(sum) => sum.f_add(&part)?,
                None => part,
            });
        }
        sum.ok_or(crate::Error::Internal("attention looks at nothing"))
    }

    /// The pattern: rows sum to one, or to less where there is a sink. libtorch computes it in fp32 or better within.
    fn softmax(&self, scores: &Tensor) -> Result<Tensor> {
        let kind = scores.f_kind()?;
        let Some(sinks) = &self.sinks else { return Ok(scores.f_softmax(-1, kind)?) };
        let size = scores.size();
        let sinks = sinks.f_view([1, -1, 1, 1])?.f_expand([size[0], size[1], size[2], 1], false)?;
        let scores = Tensor::f_cat(&[scores, &sinks], -1)?; // [batch, head, query, key + 1]
        Ok(scores.f_softmax(-1, kind)?.f_narrow(-1, 0, size[3])?)
    }
}

/// Keys and values of the past, which latents make, and the new ones, which may record gradients.
fn past_and_new(blocks: &[Tensor], n_past: i64, latent: &Latent, new: &NewKeys<'_>) -> Result<Vec<KeyValueBlock>> {
    let new = new.block()?;
    let mut start = 0;
    let mut all = Vec::new();
    for block in blocks {
        let len = block.size()[2].min(n_past - start);
        if len > 0 {
            let (keys, values) = latent.keys_and_values(&block.f_narrow(2, 0, len)?)?;
            all.push(KeyValueBlock { keys, values });
            start += len;
        }
    }
    // The last block is of the batch's own rows, unless only shared positions came before.
    if let Some(last) = all.pop_if(|last| last.keys.size()[0] == new.keys.size()[0]) {
        let joined = |past: &Tensor, new: &Tensor| Ok::<_, crate::Error>(Tensor::f_cat(&[past, new], 2)?);
        let (keys, values) = (joined(&last.keys, &new.keys)?, joined(&last.values, &new.values)?);
        all.push(KeyValueBlock { keys, values });
    } else {
        all.push(new);
    }
    Ok(all)
}

/// The product of each query head with what its group and its row have, `[row, kv_head, in, out]`: `[batch, head, query, in]` to
/// `[batch, head, query, out]`. What rows and heads share is read once for all of them.
fn products(x: &Tensor, shared: &Tensor) -> Result<Tensor> {
    let [batch, heads, queries, width] = [0, 1, 2, 3].map(|axis| x.size()[axis]);
    let [rows, kv_heads, _, out] = [0, 1, 2, 3].map(|axis| shared.size()[axis]);
    let (times, group) = (batch / rows, heads / kv_heads);
    let x = x.f_reshape([rows, times, kv_heads, group * queries, width])?.f_transpose(1, 2)?; // [row, kv_head, time, query of the group, in]
    let x = x.f_reshape([rows * kv_heads, times * group * queries, width])?;
    let product = x.f_bmm(&shared.f_flatten(0, 1)?)?; // [row · kv_head, time · query of the group, out]
    let product = product.f_view([rows, kv_heads, times, group * queries, out])?.f_transpose(1, 2)?;
    Ok(product.f_reshape([batch, heads, queries, out])?)
}

/// Some positions of blocks that begin with position `first`; those without any are left out.
fn narrowed(blocks: &[KeyValueBlock], keys: &Range<i64>, first: i64) -> Result<Vec<KeyValueBlock>> {
    let mut start = first;
    let mut seen = Vec::with_capacity(blocks.len());
    for block in blocks {
        let end = start + block.len();
        let (from, to) = (keys.start.max(start), keys.end.min(end));
        if from < to {
            seen.push(block.narrow(from - start, to - from)?);
        }
        start = end;
    }
    Ok(seen)
}

/// Some positions of `[batch, head, pos, d_head]`, which begins with position `first`: itself, where these are all.
fn columns(x: &Tensor, range: &Range<i64>, first: i64) -> Result<Tensor> {
    let len = range.end - range.start;
    match len == x.size()[2] {
        true => Ok(x.shallow_clone()),
        false => Ok(x.f_narrow(2, range.start - first, len)?),
    }
}
