//! [`Columns`]: the sources of a graph, in their order, and which of them reach a target.

/// A group of sources in one layer, position by position.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// The number of its first source among all.
    pub(super) first: usize,
    /// Where the sources of each position begin in the group, and where the last ones end.
    pub(super) starts: Vec<usize>,
}

impl Group {
    pub(super) fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// How many of its sources are at a position or before it.
    pub(super) fn up_to(&self, position: usize) -> usize {
        self.starts.get(position + 1).copied().unwrap_or(0)
    }

    pub(super) fn position(&self, index: usize) -> usize {
        self.starts.partition_point(|start| *start <= index).saturating_sub(1)
    }
}

/// What a source is, by its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Units(usize),
    Heads(usize),
    Errors(usize),
    Tokens,
    /// Positions of an encoder's output, which all positions see.
    Encoder,
}

/// The sources of a graph: units, heads, errors, layer by layer each, then tokens. This is circuit-tracer's order. In a decoder with cross-attention, the
/// positions of the encoder's output come last.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Columns {
    pub(super) groups: Vec<(Kind, Group)>,
    pub(super) len: usize,
    /// What reaches a target: the model's order of sublayers and of positions.
    pub(super) order: Order,
}

/// Which sources come before which targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Whether MLPs read what attention of their layer reads.
    pub(super) parallel: bool,
    /// Whether attention looks at earlier positions alone.
    pub(super) causal: bool,
}

/// Where a target reads the stream; the later in the model, the larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// What the heads of a layer read.
    Heads(usize),
    /// What the MLP of a layer reads.
    Mlp(usize),
    /// What the unembedding reads.
    Logits,
}

impl Place {
    fn depth(self) -> usize {
        match self {
            Place::Heads(layer) => 2 * layer,
            Place::Mlp(layer) => 2 * layer + 1,
            Place::Logits => usize::MAX,
        }
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.depth().cmp(&other.depth())
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Columns {
    pub(super) fn new(groups: impl IntoIterator<Item = (Kind, Vec<usize>)>, order: Order) -> Self {
        let mut len = 0;
        let groups = groups.into_iter().map(|(kind, starts)| {
            let group = Group { first: len, starts };
            len += group.len();
            (kind, group)
        });
        let groups = groups.collect();
        Columns { groups, len, order }
    }

    pub(super) fn group(&self, kind: Kind) -> Option<&Group> {
        self.groups.iter().find(|(of, _)| *of == kind).map(|(_, group)| group)
    }

    /// The group of a source, and its number there.
    pub(super) fn locate(&self, column: usize) -> Option<(Kind, &Group, usize)> {
        let next = self.groups.partition_point(|(_, group)| group.first <= column);
        // Empty groups begin where the next one does.
        let (kind, group) = self.groups[..next].iter().rev().find(|(_, group)| group.len() > 0)?;
        (column < group.first + group.len()).then(|| (*kind, group, column - group.first))
    }

    /// How many sources are units or heads, which are targets as well.
    pub(super) fn targets(&self) -> usize {
        let leaf = |kind: &Kind| matches!(kind, Kind::Errors(_) | Kind::Tokens | Kind::Encoder);
        self.groups.iter().find(|(kind, _)| leaf(kind)).map_or(self.len, |(_, group)| group.first)
    }

    /// The groups that reach a target at a place and position, each with the number of its sources that do.
    pub(super) fn support(&self, place: Place, position: usize) -> impl Iterator<Item = (&Group, usize)> {
        let Order { parallel, causal } = self.order;
        let reaches = move |kind: Kind| match (kind, place) {
            (Kind::Tokens | Kind::Encoder, _) | (_, Place::Logits) => true,
            (Kind::Heads(layer), Place::Mlp(of)) if !parallel => layer <= of,
            (Kind::Units(layer) | Kind::Heads(layer) | Kind::Errors(layer), Place::Heads(of) | Place::Mlp(of)) => {
                layer < of
            }
        };
        self.groups
            .iter()
            .filter(move |(kind, _)| reaches(*kind))
            .map(move |(_, group)| (group, if causal { group.up_to(position) } else { group.len() }))
            .filter(|(_, n)| *n > 0)
    }

    /// How many sources reach a target.
    pub(super) fn reach(&self, place: Place, position: usize) -> usize {
        self.support(place, position).map(|(_, n)| n).sum()
    }
}
