//! The parameter tree: [`Module`] visits every tensor of a model, in the order of the data, with its [`Address`].
//!
//! Each component lists its tensors once, with the macro [`module!`]. Names, counts, kinds, devices, casts, moves, state dicts and
//! saves follow from that list.

use std::collections::{HashMap, HashSet};
use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use super::block::{Block, MlpOrExperts};
use super::mlp::MlpParts;
use super::moe::Expert;
use super::part::{stream_readers, Address, Location, Part, Role, ENCODER_READERS};
use super::{Transformer, Weights};
use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

/// Is shown every tensor.
pub(crate) type Visitor<'v, 'a> = dyn FnMut(Address, &'a SharedTensor) + 'v;

/// Is given every tensor, to change or replace it.
pub(crate) type VisitorMut<'v> = dyn FnMut(Address, &mut SharedTensor) -> Result<()> + 'v;

/// Something that holds tensors: a tensor itself, or a component of the network.
pub(crate) trait Module {
    /// What a component is told of its tensors: a [`Part`] for each where several components are of one type, else nothing.
    type Parts: Copy;

    /// Calls `visitor` with every tensor.
    fn visit<'a>(&'a self, parts: Self::Parts, location: Location, visitor: &mut Visitor<'_, 'a>);

    /// Calls `visitor` with every tensor, to change or replace it. Stops at the first error.
    fn visit_mut(&mut self, parts: Self::Parts, location: Location, visitor: &mut VisitorMut<'_>) -> Result<()>;
}

/// Implements [`Module`] for a component: `module!(Type, pattern: Parts { field: its parts, … } plain { field, … })`.
///
/// Every field stands in one of the two lists: one that is forgotten does not compile.
macro_rules! module {
    ($type:ty, $parts:pat => $parts_type:ty, { $($field:ident: $part:expr),* $(,)? } plain { $($plain:ident),* $(,)? }) => {
        impl crate::model::parameters::Module for $type {
            type Parts = $parts_type;

            fn visit<'a>(
                &'a self,
                $parts: Self::Parts,
                location: crate::model::part::Location,
                visitor: &mut crate::model::parameters::Visitor<'_, 'a>,
            ) {
                let Self { $($field,)* $($plain: _,)* } = self;
                $($field.visit($part, location, visitor);)*
            }

            fn visit_mut(
                &mut self,
                $parts: Self::Parts,
                location: crate::model::part::Location,
                visitor: &mut crate::model::parameters::VisitorMut<'_>,
            ) -> crate::Result<()> {
                let Self { $($field,)* $($plain: _,)* } = self;
                $($field.visit_mut($part, location, visitor)?;)*
                Ok(())
            }
        }
    };
}
pub(crate) use module;

impl Module for SharedTensor {
    type Parts = Part;

    fn visit<'a>(&'a self, part: Part, location: Location, visitor: &mut Visitor<'_, 'a>) {
        visitor(Address { location, part }, self);
    }

    fn visit_mut(&mut self, part: Part, location: Location, visitor: &mut VisitorMut<'_>) -> Result<()> {
        visitor(Address { location, part }, self)
    }
}

impl<M: Module> Module for Option<M> {
    type Parts = M::Parts;

    fn visit<'a>(&'a self, parts: M::Parts, location: Location, visitor: &mut Visitor<'_, 'a>) {
        self.iter().for_each(|module| module.visit(parts, location, visitor));
    }

    fn visit_mut(&mut self, parts: M::Parts, location: Location, visitor: &mut VisitorMut<'_>) -> Result<()> {
        self.iter_mut().try_for_each(|module| module.visit_mut(parts, location, visitor))
    }
}

impl<M: Module, const N: usize> Module for [M; N] {
    type Parts = [M::Parts; N];

    fn visit<'a>(&'a self, parts: Self::Parts, location: Location, visitor: &mut Visitor<'_, 'a>) {
        self.iter().zip(parts).for_each(|(module, parts)| module.visit(parts, location, visitor));
    }

    fn visit_mut(&mut self, parts: Self::Parts, location: Location, visitor: &mut VisitorMut<'_>) -> Result<()> {
        self.iter_mut().zip(parts).try_for_each(|(module, parts)| module.visit_mut(parts, location, visitor))
    }
}

/// Components of which a model has several, each at a location of its own.
trait Numbered: Module<Parts = ()> {
    fn location(outer: Location, index: usize) -> Location;
}

impl Numbered for Block {
    fn location(_: Location, layer: usize) -> Location {
        Location::block(layer)
    }
}

impl Numbered for Expert {
    fn location(block: Location, expert: usize) -> Location {
        block.expert(expert)
    }
}

impl<M: Numbered> Module for Vec<M> {
    type Parts = ();

    fn visit<'a>(&'a self, (): (), location: Location, visitor: &mut Visitor<'_, 'a>) {
        for (index, module) in self.iter().enumerate() {
            module.visit((), M::location(location, index), visitor);
        }
    }

    fn visit_mut(&mut self, (): (), location: Location, visitor: &mut VisitorMut<'_>) -> Result<()> {
        for (index, module) in self.iter_mut().enumerate() {
            module.visit_mut((), M::location(location, index), visitor)?;
        }
        Ok(())
    }
}

impl Module for MlpOrExperts {
    type Parts = ();

    fn visit<'a>(&'a self, (): (), location: Location, visitor: &mut Visitor<'_, 'a>) {
        match self {
            MlpOrExperts::Mlp(mlp) => mlp.visit(MlpParts::OWN, location, visitor),
            MlpOrExperts::Experts(experts) => experts.visit((), location, visitor),
        }
    }

    fn visit_mut(&mut self, (): (), location: Location, visitor: &mut VisitorMut<'_>) -> Result<()> {
        match self {
            MlpOrExperts::Mlp(mlp) => mlp.visit_mut(MlpParts::OWN, location, visitor),
            MlpOrExperts::Experts(experts) => experts.visit_mut((), location, visitor),
        }
    }
}

module!(Weights, () => (), { embed: (), blocks: (), unembed: () } plain {});

/// Converts the tensors of a component that are in the model's kind.
pub(crate) fn cast(module: &mut impl Module<Parts = ()>, kind: Kind) -> Result<()> {
    module.visit_mut((), Location::default(), &mut |address, tensor| {
        if address.part.role() != Role::Constant {
            *tensor = tensor.f_to_kind(kind)?.into();
        }
        Ok(())
    })
}

/// The kinds that weights can have.
pub(crate) fn check_kind(kind: Kind) -> Result<()> {
    match kind {
        Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double => Ok(()),
        kind => Err(Error::UnsupportedKind { kind }),
    }
}

impl Weights {
    /// Every tensor, with its address.
    pub(crate) fn tensors(&self) -> Vec<(Address, &SharedTensor)> {
        let mut all = Vec::new();
        self.visit((), Location::default(), &mut |address, tensor| all.push((address, tensor)));
        all
    }
}

impl Transformer {
    /// The tensors that the weights are kept in, by name: handles on the model's own memory.
    ///
    /// Queries, keys and values are one matrix. A tied unembedding is the embedding, and is not repeated.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let (name, weight) = &model.parameters()[0];
    /// assert_eq!((name.as_str(), weight.size()), ("embed.W_E", vec![1047, 128]));
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let parameters = self.distinct_parameters();
        parameters.map(|(address, tensor)| (address.to_string(), tensor.shallow_clone())).collect()
    }

    /// How many parameters the model has. Those that layers share count once.
    pub fn n_params(&self) -> usize {
        let mut seen = HashSet::new();
        let is_new = |(address, tensor): &(Address, &SharedTensor)| seen.insert((address.part, tensor.data_ptr()));
        self.distinct_parameters().filter(is_new).map(|(_, tensor)| tensor.numel()).sum()
    }

    pub(super) fn distinct_parameters(&self) -> impl Iterator<Item = (Address, &SharedTensor)> {
        let tied = self.is_tied();
        let counts = move |part: Part| part.role() != Role::Constant && !(tied && part == Part::U);
        let tensors = self.weights().map_or_else(|_| Vec::new(), Weights::tensors);
        tensors.into_iter().filter(move |(address, _)| counts(address.part))
    }

    /// Whether the unembedding lies in the embedding's memory.
    pub(crate) fn is_tied(&self) -> bool {
        self.weights().is_ok_and(Weights::is_tied)
    }

    /// The model with its weights in another kind: `Float`, `Double`, `Half` or `BFloat16`. This model stays as it is.
    ///
    /// Weights that are of that kind already are shared with this model, not copied. Tied weights stay tied.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedKind`] for any other kind; libtorch's own, such as of memory that runs out.
    pub fn to_kind(&self, kind: Kind) -> Result<Self> {
        check_kind(kind)?;
        self.map(|address, tensor| match address.part.role() {
            Role::Constant => Ok(tensor.clone()),
            _ => Ok(tensor.f_to_kind(kind)?.into()),
        })
    }

    /// The model with its weights on another device. This model stays where it is.
    ///
    /// Weights that are there already are shared with this model, not copied. Tied weights stay tied.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] where there is no such device; libtorch's own, such as of memory that runs out.
    pub fn to(&self, device: Device) -> Result<Self> {
        crate::unchecked::cuda::check(device)?;
        self.map(|_, tensor| Ok(tensor.f_to_device(device)?.into()))
    }

    /// The model with another one's embedding in place of its own, where the two are the same: one tensor in memory for both.
    pub(crate) fn sharing_embedding(&self, other: &Transformer) -> Result<Self> {
        let (own, theirs) = (&self.weights()?.embed.w_e, &other.weights()?.embed.w_e);
        let alike = own.size() == theirs.size() && own.kind() == theirs.kind() && own.device() == theirs.device();
        if !alike || own.data_ptr() == theirs.data_ptr() || !own.f_equal(theirs)? {
            return Ok(self.clone());
        }
        let mut weights = self.weights()?.clone();
        if let (true, Some(u)) = (self.is_tied(), &mut weights.unembed.u) {
            u.weight = theirs.clone();
        }
        weights.embed.w_e = theirs.clone();
        Ok(Transformer::new(self.config().clone(), weights).with_processing(self.processing_steps()))
    }

    /// The model with other tensors. What is one tensor stays one.
    fn map(&self, mut change: impl FnMut(Address, &SharedTensor) -> Result<SharedTensor>) -> Result<Self> {
        let tied = self.is_tied();
        let _no_gradients = crate::unchecked::autodiff::autodiff(false);
        let mut weights = self.weights()?.clone();
        let mut changed: HashMap<(Part, *mut c_void), SharedTensor> = HashMap::new(); // of layers that share theirs
        weights.visit_mut((), Location::default(), &mut |address, tensor| {
            if !(tied && address.part == Part::U) {
                let place = (address.part, tensor.data_ptr());
                *tensor = match changed.get(&place) {
                    Some(changed) => changed.clone(),
                    None => change(address, tensor)?,
                };
                changed.insert(place, tensor.clone());
            }
            Ok(())
        })?;
        if tied {
            let w_e = weights.embed.w_e.clone();
            weights.unembed.u.iter_mut().for_each(|u| u.weight = w_e.clone());
        }
        let model = Transformer::new(self.config().clone(), weights).with_processing(self.processing_steps());
        match self.splices().is_empty() {
            true => Ok(model),
            false => Ok(model.with_splices(self.splices().to(model.kind(), model.device())?)),
        }
    }
}

/// A part and its tensor.
pub(crate) type PartTensor = (Address, Tensor);

impl Transformer {
    /// Every part of the model, as views of its memory: [`Weights::tensors`], with queries, keys and values apart.
    pub(crate) fn parts(&self) -> Result<Vec<PartTensor>> {
        let mut all = Vec::new();
        for (address, tensor) in self.weights()?.tensors() {
            let (is_bias, joined) = match address.part {
                Part::Qkv => (false, stream_readers(self.config(), address.location.layer.unwrap_or(0))),
                Part::QkvB => (true, stream_readers(self.config(), address.location.layer.unwrap_or(0))),
                Part::CrossKv => (false, ENCODER_READERS),
                Part::CrossKvB => (true, ENCODER_READERS),
                _ => {
                    all.push((address, tensor.shallow_clone()));
                    continue;
                }
            };
            let mut start = 0;
            for (weight, bias) in joined {
                let part = if is_bias { *bias } else { *weight };
                let rows = part.shape(self.config(), address.location)[0];
                all.push((Address { part, ..address }, tensor.f_narrow(0, start, rows)?));
                start += rows;
            }
        }
        Ok(all)
    }
}
