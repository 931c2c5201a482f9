//! The functions of TransformerLens' module `patching`.

use tch::Tensor;

use super::axes::{MapAxis, PatchAxis};
use super::index::PatchIndex;
use super::map::{MetricMap, Swept};
use super::{activation_patch, sweep, PatchingOptions};
use crate::cache::ActivationCache;
use crate::hooked_transformer::HookedTransformer;
use crate::metric::Metric;
use crate::text::input::Input;
use crate::Result;

use PatchAxis::{DestPos, Head, Layer, Pos, SrcPos};

macro_rules! patches {
    ($($(#[$doc:meta])* $name:ident: $site:literal [$($axis:ident)+];)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            ///
            /// Those of [`activation_patch`].
            pub fn $name(
                model: &HookedTransformer,
                corrupted: impl Into<Input>,
                clean_cache: &ActivationCache,
                metric: &Metric<'_>,
            ) -> Result<MetricMap> {
                let index = PatchIndex::new($site, [$($axis),+]);
                activation_patch(model, corrupted, clean_cache, metric, &index, PatchingOptions::new())
            }
        )*
    };
}

patches! {
    /// Patches the residual stream before each layer at each position: `[layer, pos]`.
    get_act_patch_resid_pre: "resid_pre" [Layer Pos];
    /// Patches the residual stream between attention and MLP at each position; a model whose attention and MLP run in parallel has none: `[layer, pos]`.
    get_act_patch_resid_mid: "resid_mid" [Layer Pos];
    /// Patches the output of each attention layer at each position: `[layer, pos]`.
    get_act_patch_attn_out: "attn_out" [Layer Pos];
    /// Patches the output of each MLP at each position: `[layer, pos]`.
    get_act_patch_mlp_out: "mlp_out" [Layer Pos];
    /// Patches the output (`z`) of each head at each position: `[layer, pos, head]`.
    get_act_patch_attn_head_out_by_pos: "z" [Layer Pos Head];
    /// Patches the queries of each head at each position: `[layer, pos, head]`.
    get_act_patch_attn_head_q_by_pos: "q" [Layer Pos Head];
    /// Patches the keys of each key-value head at each position: `[layer, pos, kv_head]`.
    get_act_patch_attn_head_k_by_pos: "k" [Layer Pos Head];
    /// Patches the values of each key-value head at each position: `[layer, pos, kv_head]`.
    get_act_patch_attn_head_v_by_pos: "v" [Layer Pos Head];
    /// Patches the attention pattern of each head from each position: `[layer, head, dest_pos]`.
    get_act_patch_attn_head_pattern_by_pos: "pattern" [Layer Head DestPos];
    /// Patches the attention of each head from each position to each position: `[layer, head, dest_pos, src_pos]`.
    get_act_patch_attn_head_pattern_dest_src_pos: "pattern" [Layer Head DestPos SrcPos];
    /// Patches the output (`z`) of each head at all positions: `[layer, head]`.
    get_act_patch_attn_head_out_all_pos: "z" [Layer Head];
    /// Patches the queries of each head at all positions: `[layer, head]`.
    get_act_patch_attn_head_q_all_pos: "q" [Layer Head];
    /// Patches the keys of each key-value head at all positions: `[layer, kv_head]`.
    get_act_patch_attn_head_k_all_pos: "k" [Layer Head];
    /// Patches the values of each key-value head at all positions: `[layer, kv_head]`.
    get_act_patch_attn_head_v_all_pos: "v" [Layer Head];
    /// Patches the attention pattern of each head at all positions: `[layer, head]`.
    get_act_patch_attn_head_pattern_all_pos: "pattern" [Layer Head];
}

/// Patches the output, queries, keys, values and pattern of each head at all positions: `[patch_type, layer, head]`. Where there are fewer
/// key-value heads than heads, the entries of keys and values past them are zero, as in TransformerLens.
///
/// # Errors
///
/// Those of [`activation_patch`].
pub fn get_act_patch_attn_head_all_pos_every(
    model: &HookedTransformer,
    corrupted: impl Into<Input>,
    clean_cache: &ActivationCache,
    metric: &Metric<'_>,
) -> Result<MetricMap> {
    every(model, corrupted.into(), clean_cache, metric, &["z", "q", "k", "v", "pattern"], &[Layer, Head])
}

/// Patches the output, queries, keys, values and pattern of each head at each position: `[patch_type, layer, pos, head]`. Where there are
/// fewer key-value heads than heads, the entries of keys and values past them are zero, as in TransformerLens.
///
/// # Errors
///
/// Those of [`activation_patch`].
pub fn get_act_patch_attn_head_by_pos_every(
    model: &HookedTransformer,
    corrupted: impl Into<Input>,
    clean_cache: &ActivationCache,
    metric: &Metric<'_>,
) -> Result<MetricMap> {
    every(model, corrupted.into(), clean_cache, metric, &["z", "q", "k", "v", "pattern"], &[Layer, Pos, Head])
}

/// Patches the stream before each layer, the output of each attention layer and that of each MLP at each position:
/// `[patch_type, layer, pos]`.
///
/// # Errors
///
/// Those of [`activation_patch`].
pub fn get_act_patch_block_every(
    model: &HookedTransformer,
    corrupted: impl Into<Input>,
    clean_cache: &ActivationCache,
    metric: &Metric<'_>,
) -> Result<MetricMap> {
    every(model, corrupted.into(), clean_cache, metric, &["resid_pre", "attn_out", "mlp_out"], &[Layer, Pos])
}

/// One sweep over several sites with the same axes, the site the first axis.
fn every(
    model: &HookedTransformer,
    corrupted: Input,
    clean_cache: &ActivationCache,
    metric: &Metric<'_>,
    sites: &[&str],
    axes: &[PatchAxis],
) -> Result<MetricMap> {
    let tokens = model.to_tokens(corrupted)?;
    let pos = tokens.ids.size()[1];
    let resolve = |site: &&str| PatchIndex::new(*site, axes).resolve(model.config(), pos);
    let indices = sites.iter().map(resolve).collect::<Result<Vec<_>>>()?;
    let parts: Vec<_> = indices.iter().flat_map(|(_, parts)| parts.iter().cloned()).collect();
    let Swept { values, baseline, batch } =
        sweep::sweep(model, &tokens, clean_cache, metric, &parts, &PatchingOptions::new())?;
    // Each site's values, with zeros where it has fewer heads.
    let (of_map, _) = &indices[0];
    let shape: Vec<i64> = of_map.iter().map(MapAxis::len).collect();
    let (mut start, mut stacked) = (0, Vec::new());
    for (own, parts) in &indices {
        let n = parts.len() as i64;
        let own: Vec<i64> = own.iter().map(MapAxis::len).chain([values.size()[1]]).collect();
        let of_site = values.f_narrow(0, start, n)?.f_view(own.as_slice())?; // [axes…, batch or 1]
        let missing = shape.last().copied().unwrap_or(0) - own[own.len() - 2];
        stacked.push(of_site.f_constant_pad_nd([0, 0, 0, missing])?);
        start += n;
    }
    let values = Tensor::f_stack(&stacked, 0)?.f_flatten(0, -2)?; // [patch, batch or 1]
    let axes = std::iter::once(MapAxis::new("patch_type", sites)).chain(of_map.iter().cloned()).collect();
    MetricMap::new(axes, Swept { values, baseline, batch })
}
