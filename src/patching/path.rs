//! Path patching: what one part of the model tells another, along some paths only.

use std::collections::BTreeMap;

use tch::Tensor;

use super::axes::MapAxis;
use super::base::{aligned, shape};
use super::batch::{repeated, tiled};
use super::groups::Resume;
use super::map::{MetricMap, Swept};
use super::sweep::{resolved, Budget, Sweep, Write};
use super::{PatchIndex, PatchingOptions};
use crate::cache::ActivationCache;
use crate::hook::{self, HookName, HookPart, HookPoint, Place, Site};
use crate::hooked_transformer::{HookedTransformer, ReturnType, RunOptions};
use crate::metric::Metric;
use crate::run::{Hooks, Selected};
use crate::text::input::Input;
use crate::text::input::Tokens;
use crate::text::positions::Positions;
use crate::{Error, HookFailure, Result};

/// Which paths are patched, and how.
#[derive(Clone, Debug)]
pub struct PathOptions {
    through: Vec<HookPart>,
    through_mlps: bool,
    budget: u64,
}

impl Default for PathOptions {
    fn default() -> Self {
        PathOptions { through: Vec::new(), through_mlps: false, budget: PatchingOptions::default().budget }
    }
}

impl PathOptions {
    /// Direct paths only: all heads and MLPs between sender and receiver are as in the base run.
    pub fn new() -> Self {
        PathOptions::default()
    }

    /// Paths through these nodes as well: heads (`hook::z(2).head(1)`, or `cross_z` in a decoder) and MLPs (`hook::mlp_out(3)`), or parts of
    /// them, which are computed anew from what reaches them.
    pub fn through(mut self, nodes: impl Into<Vec<HookPart>>) -> Self {
        self.through = nodes.into();
        self
    }

    /// Paths through all MLPs as well, as in the paper on indirect objects.
    pub fn through_mlps(mut self) -> Self {
        self.through_mlps = true;
        self
    }

    /// The memory, in bytes, that the activations of one batch may take: [`PatchingOptions::budget`].
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = bytes;
        self
    }
}

/// The metric of the base run where one receiver gets what one sender of the source run tells it: a map over receivers, then senders.
///
/// Each figure is that of three runs (Wang et al. 2022, "Interpretability in the Wild", and Goldowsky-Dill et al. 2023, "Localizing Model
/// Behavior with Path Patching"). The first two are the base run and the source run. In the third, on the base tokens, the sender is as
/// in the source run, and all other heads (`z`, and `cross_z` in a decoder) and MLPs (`mlp_out`), and per-layer embeddings (`ple_out`), are
/// as in the base run, but for those that the paths may [go through](PathOptions::through); the receiver's activation is read from it. The figure is the metric of a run on the base
/// tokens in which only that activation is replaced.
///
/// Senders are parts that write to the stream: heads (`z`), MLPs (`mlp_out`), `attn_out`, `embed`, or positions of the stream itself.
/// Receivers are parts that read it: `q`, `k` and `v` of heads, `mlp_in`, and for the unembedding the last `resid_post`.
///
/// ```
/// use tch_lens::patching::{self, PatchAxis, PatchIndex, PathOptions};
/// use tch_lens::{hook, HookedTransformer, Metric};
/// let model = HookedTransformer::toy()?;
/// let (_, source) = model.run_with_cache("When Mary and John went to the shop, Mary gave a bag to")?;
/// let base = "When Mary and John went to the shop, John gave a bag to";
/// let metric = Metric::logit_diff(" Mary", " John");
/// // Which heads tell the logits directly?
/// let senders = PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Head]);
/// let receiver = PatchIndex::of([hook::resid_post(-1).into()]);
/// let map = patching::path_patch(&model, base, &source, &metric, &senders, &receiver, PathOptions::new().through_mlps())?;
/// assert_eq!(map.tensor().size(), [1, 4, 4]); // [receiver, layer, head]
/// println!("{map}");
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`activation_patch`](super::activation_patch), with the source cache for the clean one; [`Error::Hook`] for a sender that does
/// not write to the stream, a receiver that does not read it, and a node that is neither a head nor an MLP.
pub fn path_patch(
    model: &HookedTransformer,
    base: impl Into<Input>,
    source_cache: &ActivationCache,
    metric: &Metric<'_>,
    senders: &PatchIndex,
    receivers: &PatchIndex,
    options: PathOptions,
) -> Result<MetricMap> {
    let tokens = model.to_tokens(base)?;
    let pos = shape(&tokens).1;
    let (axes, parts) = receivers.resolve(model.config(), pos)?;
    let of_receivers = axes.into_iter().map(|axis| MapAxis { name: format!("to {}", axis.name), ..axis });
    let receivers: Vec<Vec<HookPart>> = parts.into_iter().map(|part| vec![part]).collect();
    let (of_senders, senders) = senders.resolve(model.config(), pos)?;
    let axes = of_receivers.chain(of_senders).collect();
    patch(model, &tokens, source_cache, metric, (&senders, &receivers), &options, axes)
}

/// [`path_patch`] to several receivers together: a map over senders.
///
/// # Errors
///
/// Those of [`path_patch`].
pub fn path_patch_together(
    model: &HookedTransformer,
    base: impl Into<Input>,
    source_cache: &ActivationCache,
    metric: &Metric<'_>,
    senders: &PatchIndex,
    receivers: impl Into<Vec<HookPart>>,
    options: PathOptions,
) -> Result<MetricMap> {
    let tokens = model.to_tokens(base)?;
    let (axes, senders) = senders.resolve(model.config(), shape(&tokens).1)?;
    patch(model, &tokens, source_cache, metric, (&senders, &[receivers.into()]), &options, axes)
}

/// The metric for each group of receivers and each sender, the sender running fastest.
fn patch(
    model: &HookedTransformer,
    tokens: &Tokens,
    source: &ActivationCache,
    metric: &Metric<'_>,
    (senders, receivers): (&[HookPart], &[Vec<HookPart>]),
    options: &PathOptions,
    axes: Vec<MapAxis>,
) -> Result<MetricMap> {
    let config = model.config();
    if senders.is_empty() || receivers.iter().any(Vec::is_empty) || receivers.is_empty() {
        return Err(Error::NothingSelected {
            what: "the index of senders or of receivers".into(),
            hint: String::new(),
        });
    }
    let of = |parts: &[HookPart], may: fn(Site) -> bool, why: &str| -> Result<Vec<HookPart>> {
        let check = |part: &HookPart| {
            let part = resolved(part, model)?;
            match may(part.point.site()) {
                true => Ok(part),
                false => Err(Error::hook(part.point, HookFailure::Part { why: why.into() })),
            }
        };
        parts.iter().map(check).collect()
    };
    let senders = of(senders, writes, "a sender is a part that writes to the stream, such as `z` or `mlp_out`")?;
    let receivers = receivers.iter().map(|parts| {
        of(parts, reads, "a receiver is a part that reads the stream, such as `q`, `mlp_in` or the last `resid_post`")
    });
    let receivers = receivers.collect::<Result<Vec<_>>>()?;
    let nodes = of(&options.through, node, "paths go through heads (`z`) and MLPs (`mlp_out`)")?;
    let read: Vec<HookPoint> = receivers.iter().flatten().map(HookPart::point).collect();
    let mut kept: Vec<HookPoint> = senders.iter().map(HookPart::point).collect();
    for layer in 0..config.n_layers {
        kept.extend([hook::z(layer), hook::resid_pre(layer)]);
        kept.extend((!config.attn_only()).then(|| hook::mlp_out(layer)));
        kept.extend(config.attention.cross.map(|_| hook::cross_z(layer)));
        kept.extend(config.stream.layer_embedding.map(|_| hook::ple_out(layer)));
    }
    let sweep = Sweep::new(model, tokens, metric, &read, &kept)?;
    let points: Vec<HookPoint> = senders.iter().map(HookPart::point).collect();
    let sent = aligned(source, &sweep.base, &points)?;
    let paths = Paths { sweep: &sweep, sent, nodes, through_mlps: options.through_mlps, read };
    // Of some senders at a time, what they tell receivers is kept: in a quarter of the budget, if that suffices for one.
    let told_bytes = paths.bytes_of_one()?;
    let at_once = usize::try_from(options.budget / 4 / told_bytes.max(1)).unwrap_or(usize::MAX).max(1);
    let mut parts = Vec::new(); // [receiver, sender, batch or 1]
    let mut baseline = None;
    for senders in senders.chunks(at_once) {
        let budget = Budget { bytes: options.budget, reserved: told_bytes.saturating_mul(senders.len() as u64) };
        let told = paths.told(senders, budget)?;
        let mut patches = Vec::with_capacity(receivers.len() * senders.len());
        for parts in &receivers {
            for told in &told {
                let write = |part: &HookPart| -> Result<Write> {
                    // What a sender does not reach is as in the base run.
                    let value = match told.get(&part.point) {
                        Some(value) => value,
                        None => sweep.base.cache.get(part.point)?,
                    };
                    Ok(Write { part: part.clone(), value: value.shallow_clone() })
                };
                patches.push(parts.iter().map(write).collect::<Result<Vec<_>>>()?);
            }
        }
        let swept = sweep.run(&patches, budget)?;
        parts.push(swept.values.f_unflatten(0, [receivers.len() as i64, senders.len() as i64])?);
        baseline = Some((swept.baseline, swept.batch));
    }
    let (baseline, batch) = baseline.ok_or(Error::Internal("a map of paths has no senders"))?;
    let values = Tensor::f_cat(&parts, 1)?.f_flatten(0, 1)?; // [receiver · sender, batch or 1]
    MetricMap::new(axes, Swept { values, baseline, batch })
}

/// Whether a site writes to the stream, or is it.
fn writes(site: Site) -> bool {
    use Site::{AttnOut, Embed, FullEmbed, MlpOut, PleOut, PosEmbed, Result, TokenTypeEmbed, Z};
    use Site::{CrossAttnOut, CrossResult, CrossZ};
    [Z, Result, AttnOut, MlpOut, PleOut, Embed, PosEmbed, TokenTypeEmbed, FullEmbed].contains(&site)
        || [CrossZ, CrossResult, CrossAttnOut].contains(&site)
        || is_stream(site)
}

fn is_stream(site: Site) -> bool {
    use Site::{NormalizedResidPost, ResidMid, ResidMidCross, ResidPost, ResidPre};
    matches!(site, ResidPre | ResidMid | ResidMidCross | ResidPost | NormalizedResidPost)
}

/// Whether a site reads the stream, or is it.
fn reads(site: Site) -> bool {
    !matches!(site, Site::PleOut | Site::Embed | Site::PosEmbed | Site::Tokens)
        && !matches!(site, Site::Z | Site::Result | Site::AttnOut | Site::MlpOut)
        && !matches!(site, Site::CrossZ | Site::CrossResult | Site::CrossAttnOut)
}

/// Whether a site is that of a head or an MLP, which is as in the base run unless paths go through it.
fn node(site: Site) -> bool {
    matches!(site, Site::Z | Site::CrossZ | Site::MlpOut)
}

/// The paths from senders.
struct Paths<'p, 's, 'm, 'a> {
    sweep: &'p Sweep<'s, 'm, 'a>,
    /// The activations of the source run.
    sent: BTreeMap<HookPoint, Tensor>,
    nodes: Vec<HookPart>,
    through_mlps: bool,
    /// The points of the receivers.
    read: Vec<HookPoint>,
}

impl Paths<'_, '_, '_, '_> {
    /// The bytes of the receivers' activations for one sender.
    fn bytes_of_one(&self) -> Result<u64> {
        let mut points = self.read.clone();
        points.sort();
        points.dedup();
        let bytes = points.into_iter().map(|point| {
            let x = self.sweep.base.cache.get(point)?;
            Ok((x.numel() * x.f_kind()?.elt_size_in_bytes()) as u64)
        });
        bytes.sum()
    }

    /// The receivers' activations for each sender, as far as it reaches them.
    fn told(&self, senders: &[HookPart], budget: Budget) -> Result<Vec<BTreeMap<HookPoint, Tensor>>> {
        let config = self.sweep.model.config();
        let mut told: Vec<_> = senders.iter().map(|_| BTreeMap::new()).collect();
        let mut groups: BTreeMap<Resume, Vec<usize>> = BTreeMap::new();
        for (i, sender) in senders.iter().enumerate() {
            groups.entry(Resume::hooked(sender.point, config)).or_default().push(i);
        }
        for (resume, group) in groups {
            // What is read is kept besides.
            let most = self.sweep.most_patches(&resume, shape(self.sweep.tokens).1, budget)?;
            for chunk in group.chunks(most.div_ceil(2)) {
                let chosen: Vec<&HookPart> = chunk.iter().map(|i| &senders[*i]).collect();
                for (i, of_sender) in chunk.iter().zip(self.run(&resume, &chosen)?) {
                    told[*i] = of_sender;
                }
            }
        }
        Ok(told)
    }

    /// One batch of senders, whose runs start at the same place.
    fn run(&self, resume: &Resume, senders: &[&HookPart]) -> Result<Vec<BTreeMap<HookPoint, Tensor>>> {
        let Sweep { model, tokens, base, .. } = self.sweep;
        let (config, n) = (model.config(), senders.len() as i64);
        let batch = shape(tokens).0;
        let start = resume.layer.unwrap_or(0);
        let reached = |point: &HookPoint| match (point.layer(), point.place()) {
            (Some(layer), _) => layer >= start,
            (None, place) => place == Place::After || resume.layer.is_none(),
        };
        let read: Vec<HookPoint> = self.read.iter().copied().filter(reached).collect();
        let Some(last) = read.iter().map(|point| point.layer().unwrap_or(config.n_layers - 1)).max() else {
            return Ok(senders.iter().map(|_| BTreeMap::new()).collect());
        };
        let mut hooks = Hooks::new();
        for layer in start..=last.min(config.n_layers - 1) {
            let mlp = (!config.attn_only() && !self.through_mlps).then(|| hook::mlp_out(layer));
            let ple = config.stream.layer_embedding.map(|_| hook::ple_out(layer));
            let cross = config.attention.cross.map(|_| hook::cross_z(layer));
            for point in std::iter::once(hook::z(layer)).chain(cross).chain(mlp).chain(ple) {
                // With its stack, as the nodes have it.
                let point = point.resolve(config)?;
                hooks = hooks.edit(point, move |activation, _| self.freeze(point, activation, n));
            }
        }
        // After what freezes, at the same point.
        let mut by_point: BTreeMap<HookPoint, Vec<(i64, &HookPart)>> = BTreeMap::new();
        for (i, sender) in senders.iter().enumerate() {
            by_point.entry(sender.point).or_default().push((i as i64 * batch, sender));
        }
        for (point, of_point) in by_point {
            hooks = hooks.edit(point, move |activation, _| -> Result<()> {
                for (row, sender) in &of_point {
                    let rows = activation.f_narrow(0, *row, batch)?;
                    self.put(sender, &self.sent[&point], &rows)?;
                }
                Ok(())
            });
        }
        let all = tokens.map(|tensor| tiled(tensor, n))?;
        let mut run = RunOptions::new().hooks(hooks).cache(read.clone()).return_type(ReturnType::None);
        if read.iter().any(|point| point.place() == Place::After) {
            let columns = base.cache.logit_positions();
            let at = match columns.row_count() {
                Some(_) => {
                    let rows = (0..n * batch).flat_map(|row| columns.of_row((row % batch) as usize));
                    Positions::PerRow(rows.collect())
                }
                None => Positions::from(columns.of_row(0)),
            };
            run = run.logits_at(at.with_padding());
        }
        let model = repeated(model, n)?;
        let output = match resume.layer {
            Some(layer) => {
                let term = resume.terms(config)[0].resolve(config)?;
                model.run(tiled(base.cache.get(term)?, n)?, run.start_at_layer(layer).tokens(&all))?
            }
            None => model.run(all, run)?,
        };
        let mut told: Vec<BTreeMap<HookPoint, Tensor>> = senders.iter().map(|_| BTreeMap::new()).collect();
        for point in read {
            let recorded = output.cache.get(point)?;
            for (i, of_sender) in (0i64..).zip(&mut told) {
                of_sender.insert(point, recorded.f_narrow(0, i * batch, batch)?);
            }
        }
        Ok(told)
    }

    /// Sets an activation to that of the base run, but for the nodes that paths go through.
    fn freeze(&self, point: HookPoint, activation: &mut Tensor, n: i64) -> Result<()> {
        let batch = shape(self.sweep.tokens).0;
        let computed = activation.f_alias_copy()?;
        activation.f_copy_(&tiled(self.sweep.base.cache.get(point)?, n)?)?;
        for node in self.nodes.iter().filter(|node| node.point == point) {
            for row in 0..n {
                let rows = |x: &Tensor| x.f_narrow(0, row * batch, batch);
                self.put(node, &rows(&computed)?, &rows(activation)?)?;
            }
        }
        Ok(())
    }

    /// Copies a part of an activation of the base run's rows to another.
    fn put(&self, part: &HookPart, from: &Tensor, to: &Tensor) -> Result<()> {
        let selected = Selected::new(&part.selection, self.sweep.tokens, 0)?;
        let held = self.sweep.base.cache.positions_of(part.point)?.of_rows(selected.rows());
        let entries = selected.part_of(part.point, self.sweep.model.config(), &held, &to.size())?;
        let value = entries.read_undropped(from)?;
        entries.write(to, |_| Ok(value.shallow_clone()))
    }
}
