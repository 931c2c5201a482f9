//! [`HookPart`]: some entries of the activation at a hook point.

use std::fmt;

use super::filter::HookFilter;
use super::point::HookPoint;
use super::site::Extent;
use crate::tensor::slice::Slice;
use crate::tensor::span::Span;
use crate::text::positions::Positions;
use crate::{Config, Result};

/// Which entries of an activation are meant: along each axis all, or some. An axis that is selected by an index is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    pub(crate) rows: Option<Slice>,
    pub(crate) positions: Option<Positions>,
    pub(crate) head: Option<Slice>,
    pub(crate) last: Option<(LastAxis, Slice)>,
}

/// As what the last axis was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastAxis {
    Key,
    Neuron,
    Feature,
    Any,
}

/// Why a selection cannot be made, in words.
type Refusal = String;

impl Selection {
    /// Whether all entries are meant.
    pub(crate) fn is_all(&self) -> bool {
        self.rows.is_none() && self.positions.is_none() && self.head.is_none() && self.last.is_none()
    }

    /// The entries that both selections mean.
    pub(crate) fn and(&self, other: &Selection) -> Result<Selection, Refusal> {
        let twice = |axis: &str| Err(format!("it selects {axis} twice"));
        Ok(Selection {
            rows: match (&self.rows, &other.rows) {
                (Some(_), Some(_)) => return twice("rows of the batch"),
                (rows, others) => rows.clone().or_else(|| others.clone()),
            },
            positions: match (&self.positions, &other.positions) {
                (Some(_), Some(_)) => return twice("positions"),
                (positions, others) => positions.clone().or_else(|| others.clone()),
            },
            head: match (&self.head, &other.head) {
                (Some(_), Some(_)) => return twice("heads"),
                (head, others) => head.clone().or_else(|| others.clone()),
            },
            last: match (&self.last, &other.last) {
                (Some(_), Some(_)) => return twice("entries of the last axis"),
                (last, others) => last.clone().or_else(|| others.clone()),
            },
        })
    }

    /// That a point has the axes, as far as that is known without the input.
    pub(crate) fn check(&self, point: HookPoint, config: &Config) -> Result<(), Refusal> {
        let extents = point.extents(config);
        let axis = |wanted: &[Extent]| extents.iter().position(|extent| wanted.contains(extent));
        let lacks = |selection: &str, axis: &str| {
            let axes: Vec<&str> = extents.iter().map(|extent| extent.name()).collect();
            Err(format!("it selects {selection}, but the point has no {axis}: it is [{}]", axes.join(", ")))
        };
        if self.rows.is_some() && axis(&[Extent::Batch]).is_none() {
            return lacks("rows of the batch", "batch axis");
        }
        if self.positions.is_some() && axis(&[Extent::Pos]).is_none() {
            return lacks("positions", "position axis");
        }
        match (&self.head, axis(&[Extent::Head, Extent::KvHead])) {
            (Some(_), None) => return lacks("heads", "head axis"),
            (Some(heads), Some(axis)) => {
                indices(heads, extents[axis].size(config, point, 1, Span::whole(1)), "head")?;
            }
            (None, _) => {}
        }
        let last = extents.last().copied().unwrap_or(Extent::One);
        match &self.last {
            Some((LastAxis::Key, _)) if !matches!(last, Extent::Key | Extent::EncoderPos) => {
                return lacks("keys", "key axis");
            }
            Some((LastAxis::Neuron, _)) if last != Extent::DMlp => return lacks("neurons", "neuron axis"),
            Some((LastAxis::Feature, _)) if last != Extent::Feature => return lacks("features", "feature axis"),
            // What the sizes of the input decide is known later.
            Some((_, slice)) if !matches!(last, Extent::Key | Extent::EncoderPos | Extent::Pos) => {
                indices(slice, last.size(config, point, 1, Span::whole(1)), last.name())?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The indices of a slice of an axis.
pub(crate) fn indices(slice: &Slice, len: usize, axis: &'static str) -> Result<Vec<i64>, Refusal> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    slice.indices(len, axis).map_err(|error| error.to_string())
}

/// Some entries of the activation at a hook point: `hook::z(3).head(1).pos(-1)`.
///
/// | method | selects |
/// | --- | --- |
/// | [`rows`](HookPart::rows) | rows of the batch |
/// | [`pos`](HookPart::pos) | positions, as token columns; of scores and patterns, the query's |
/// | [`head`](HookPart::head) | heads: key-value heads of keys, values and what they read, query heads of everything else |
/// | [`key`](HookPart::key) | positions of the key, of scores and patterns |
/// | [`neuron`](HookPart::neuron) | neurons of an MLP |
/// | [`feature`](HookPart::feature) | features of a dictionary |
/// | [`entries`](HookPart::entries) | entries of the last axis, whatever it is |
///
/// An index drops its axis. A hook gets the part as a tensor of its own, and what it leaves there is put back.
///
/// ```
/// use tch_lens::{hook, HookedTransformer, Hooks};
/// let model = HookedTransformer::toy()?;
/// let hooks = Hooks::new().edit(hook::z(3).head(1).pos(-1), |z, _point| {
///     assert_eq!(z.size(), [1, 32]); // [batch, d_head]
///     let _ = z.zero_();
/// });
/// model.run_with_hooks("When Mary and John went to the shop", hooks)?;
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HookPart {
    pub(crate) point: HookPoint,
    pub(crate) selection: Selection,
}

/// The points at which a hook acts, and what it selects there.
pub struct HookTarget<'a> {
    pub(crate) entries: Vec<(HookFilter<'a>, Selection)>,
}

impl HookTarget<'_> {
    /// The same target, for as long as this one lives.
    pub(crate) fn by_ref(&self) -> HookTarget<'_> {
        HookTarget {
            entries: self.entries.iter().map(|(points, selection)| (points.by_ref(), selection.clone())).collect(),
        }
    }
}

impl<'a, T: Into<HookFilter<'a>>> From<T> for HookTarget<'a> {
    fn from(points: T) -> Self {
        HookTarget { entries: vec![(points.into(), Selection::default())] }
    }
}

impl From<HookPart> for HookTarget<'_> {
    fn from(part: HookPart) -> Self {
        HookTarget { entries: vec![(part.point.into(), part.selection)] }
    }
}

impl From<Vec<HookPart>> for HookTarget<'_> {
    fn from(parts: Vec<HookPart>) -> Self {
        let entries = parts.into_iter().map(|part| (part.point.into(), part.selection));
        HookTarget { entries: entries.collect() }
    }
}

impl<const N: usize> From<[HookPart; N]> for HookTarget<'_> {
    fn from(parts: [HookPart; N]) -> Self {
        Vec::from(parts).into()
    }
}

impl From<HookPoint> for HookPart {
    fn from(point: HookPoint) -> Self {
        HookPart { point, selection: Selection::default() }
    }
}

macro_rules! selections {
    ($($(#[$doc:meta])* $method:ident($argument:ident: $type:ty) $set:expr;)*) => {
        impl HookPart {
            /// The point.
            pub fn point(&self) -> HookPoint {
                self.point
            }

            $($(#[$doc])*
            pub fn $method(mut self, $argument: impl Into<$type>) -> Self {
                let set: fn(&mut Selection, $type) = $set;
                set(&mut self.selection, $argument.into());
                self
            })*
        }

        impl HookPoint {
            $($(#[$doc])*
            pub fn $method(self, $argument: impl Into<$type>) -> HookPart {
                HookPart::from(self).$method($argument)
            })*
        }

        impl<'a> HookFilter<'a> {
            $($(#[$doc])*
            pub fn $method(self, $argument: impl Into<$type>) -> HookTarget<'a> {
                HookTarget::from(self).$method($argument)
            })*
        }

        impl HookTarget<'_> {
            $($(#[$doc])*
            pub fn $method(mut self, $argument: impl Into<$type>) -> Self {
                let set: fn(&mut Selection, $type) = $set;
                let value = $argument.into();
                self.entries.iter_mut().for_each(|(_, selection)| set(selection, value.clone()));
                self
            })*
        }
    };
}

selections! {
    /// Selects rows of the batch.
    rows(rows: Slice) |selection, rows| selection.rows = Some(rows);
    /// Selects positions, as token columns of the input. A column that is padding in one of the selected rows is an error; see
    /// [`Positions`].
    pos(positions: Positions) |selection, positions| selection.positions = Some(positions);
    /// Selects heads: key-value heads of keys, values and what they read, query heads of everything else.
    head(heads: Slice) |selection, heads| selection.head = Some(heads);
    /// Selects the keys' positions of scores and patterns.
    key(keys: Slice) |selection, keys| selection.last = Some((LastAxis::Key, keys));
    /// Selects neurons of an MLP.
    neuron(neurons: Slice) |selection, neurons| selection.last = Some((LastAxis::Neuron, neurons));
    /// Selects features of a dictionary.
    feature(features: Slice) |selection, features| selection.last = Some((LastAxis::Feature, features));
    /// Selects entries of the last axis, whatever it is.
    entries(entries: Slice) |selection, entries| selection.last = Some((LastAxis::Any, entries));
}

impl fmt::Display for HookPart {
    /// The point's name, with what is selected: `blocks.3.attn.hook_z[pos -1, head 1]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Selection { rows, positions, head, last } = &self.selection;
        let mut selected = Vec::new();
        selected.extend(rows.as_ref().map(|rows| format!("row {}", short(rows))));
        selected.extend(positions.as_ref().map(|positions| format!("pos {}", short(positions))));
        selected.extend(head.as_ref().map(|head| format!("head {}", short(head))));
        selected.extend(last.as_ref().map(|(axis, entries)| match axis {
            LastAxis::Key => format!("key {}", short(entries)),
            LastAxis::Neuron => format!("neuron {}", short(entries)),
            LastAxis::Feature => format!("feature {}", short(entries)),
            LastAxis::Any => format!("entry {}", short(entries)),
        }));
        match selected.is_empty() {
            true => write!(f, "{}", self.point),
            false => write!(f, "{}[{}]", self.point, selected.join(", ")),
        }
    }
}

/// A slice without the words that say what it is.
fn short(slice: &impl fmt::Display) -> String {
    let text = slice.to_string();
    let words = ["index ", "the slice ", "the list "];
    words.iter().find_map(|word| text.strip_prefix(word)).unwrap_or(&text).to_string()
}

impl fmt::Debug for HookTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} targets", self.entries.len())
    }
}
