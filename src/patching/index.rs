//! [`PatchIndex`]: what a sweep patches.

use super::axes::{MapAxis, PatchAxis};
use crate::hook::{Extent, HookName, HookPart, HookPoint};
use crate::tensor::slice::Slice;
use crate::text::positions::Positions;
use crate::{Config, Error, Result};

/// What a sweep patches: a site of the model over some axes, or a list of parts.
///
/// Over axes, there is a patch for each combination of their entries; an axis that is not named is patched as a whole. So
/// `PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Head])` has one patch for each head, at all positions. The last axis runs
/// fastest, as in TransformerLens.
///
/// ```
/// use tch_lens::hook;
/// use tch_lens::patching::{PatchAxis, PatchIndex};
/// let heads = PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Head]);
/// let late = PatchIndex::new("resid_pre", [PatchAxis::Layer, PatchAxis::Pos]).layers(2..).pos(-3..);
/// let some = PatchIndex::of([hook::z(1).head(2), hook::mlp_out(3).pos(-1), hook::resid_mid(0).into()]);
/// ```
#[derive(Clone, Debug)]
pub struct PatchIndex {
    what: What,
    layers: Slice,
    positions: Slice,
    heads: Slice,
    sources: Slice,
}

#[derive(Clone, Debug)]
enum What {
    Grid(String, Vec<PatchAxis>),
    Parts(Vec<HookPart>),
}

impl PatchIndex {
    /// A patch for each combination of the axes' entries at a site, by its short name (`"z"`, `"resid_pre"`, `"pattern"`).
    pub fn new(site: impl Into<String>, axes: impl Into<Vec<PatchAxis>>) -> Self {
        PatchIndex::all(What::Grid(site.into(), axes.into()))
    }

    /// A patch for each part; the map has one axis, `patch`.
    pub fn of(parts: impl Into<Vec<HookPart>>) -> Self {
        PatchIndex::all(What::Parts(parts.into()))
    }

    fn all(what: What) -> Self {
        PatchIndex { what, layers: Slice::All, positions: Slice::All, heads: Slice::All, sources: Slice::All }
    }

    /// Only these layers.
    pub fn layers(mut self, layers: impl Into<Slice>) -> Self {
        self.layers = layers.into();
        self
    }

    /// Only these positions; of scores and patterns, positions of the query.
    pub fn pos(mut self, positions: impl Into<Slice>) -> Self {
        self.positions = positions.into();
        self
    }

    /// Only these heads.
    pub fn heads(mut self, heads: impl Into<Slice>) -> Self {
        self.heads = heads.into();
        self
    }

    /// Only these positions of the key.
    pub fn src_pos(mut self, positions: impl Into<Slice>) -> Self {
        self.sources = positions.into();
        self
    }

    /// The axes of the map, and the part of each patch in the order of its entries, in an input of `pos` positions.
    ///
    /// # Errors
    ///
    /// Those of names and slices; [`Error::Setting`] for an axis that is named twice or that a point does not have, and for a
    /// selection along an axis that is not named.
    pub(super) fn resolve(&self, config: &Config, pos: i64) -> Result<(Vec<MapAxis>, Vec<HookPart>)> {
        let PatchIndex { what, layers, positions, heads, sources } = self;
        let none = Vec::new();
        let axes = match what {
            What::Grid(_, axes) => axes,
            What::Parts(_) => &none,
        };
        let has = |axis: PatchAxis| axes.contains(&axis);
        for (i, axis) in axes.iter().enumerate() {
            if axes[..i].contains(axis) {
                return Err(Error::setting("axes", format!("the index names the axis `{axis}` twice: name it once")));
            }
        }
        if has(PatchAxis::Pos) && has(PatchAxis::DestPos) {
            let why = "the index names both `pos` and `dest_pos`, which are the same axis: name one of them";
            return Err(Error::setting("axes", why));
        }
        let unnamed = [
            ("layers", layers, has(PatchAxis::Layer)),
            ("pos", positions, has(PatchAxis::Pos) || has(PatchAxis::DestPos)),
            ("heads", heads, has(PatchAxis::Head)),
            ("src_pos", sources, has(PatchAxis::SrcPos)),
        ];
        for (setting, slice, named) in unnamed {
            if !named && !matches!(slice, Slice::All) {
                let why = format!(
                    "the index selects with `{setting}` along an axis that it does not name: name the axis as well"
                );
                return Err(Error::setting(setting, why));
            }
        }
        let site = match what {
            What::Parts(parts) => {
                let resolved = |part: &HookPart| Ok(HookPart { point: part.point.resolve(config)?, ..part.clone() });
                let parts = parts.iter().map(resolved).collect::<Result<Vec<_>>>()?;
                return Ok((vec![MapAxis::new("patch", &parts)], parts));
            }
            What::Grid(site, _) => site,
        };
        let point = |layer: i64| -> Result<HookPoint> {
            match has(PatchAxis::Layer) {
                true => (site.as_str(), layer).resolve(config),
                false => site.as_str().resolve(config),
            }
        };
        let first = point(0)?;
        let of_keys = first.extents(config).contains(&Extent::KvHead);
        let of_layer = |layer| match config.heads(layer) {
            heads if of_keys => heads.key_value as i64,
            heads => heads.query as i64,
        };
        let n_heads = (0..config.n_layers).map(of_layer).max().unwrap_or(0);
        let entries = |axis: &PatchAxis| match axis {
            PatchAxis::Layer => layers.indices(config.n_layers as i64, "layer"),
            PatchAxis::Head => heads.indices(n_heads, "head"),
            PatchAxis::Pos | PatchAxis::DestPos => positions.indices(pos, "position"),
            PatchAxis::SrcPos => sources.indices(pos, "position"),
        };
        let entries = axes.iter().map(entries).collect::<Result<Vec<_>>>()?;
        let mut parts = vec![(0, HookPart::from(first))];
        for (axis, entries) in axes.iter().zip(&entries) {
            let with = |(layer, part): &(i64, HookPart), entry: i64| match axis {
                PatchAxis::Layer => (entry, part.clone()),
                PatchAxis::Head => (*layer, part.clone().head(entry)),
                // What is padding in some row has no effect there.
                PatchAxis::Pos | PatchAxis::DestPos => {
                    (*layer, part.clone().pos(Positions::from(entry).with_padding()))
                }
                PatchAxis::SrcPos => (*layer, part.clone().key(entry)),
            };
            parts = parts.iter().flat_map(|part| entries.iter().map(move |entry| with(part, *entry))).collect();
        }
        let at_point = |(layer, part): (i64, HookPart)| Ok(HookPart { point: point(layer)?, ..part });
        let parts = parts.into_iter().map(at_point).collect::<Result<_>>()?;
        let axes = axes.iter().zip(entries).map(|(axis, entries)| MapAxis::new(axis, entries)).collect();
        Ok((axes, parts))
    }
}
