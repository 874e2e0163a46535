//! The life of a worker in a group: it carries out what its [`Membership`] was told, and serves while every expert
//! lives somewhere.
//!
//! One round: load what is missing, hand placements to the fabric, drop what may go, report. In this order, so that a
//! report is never ahead of the truth; that a target is prepared is told when its members are connected to.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use belay_backend::{Backend, Fabric};
use belay_epoch::document::Slot;
use belay_fabric::{Adopter, Group, Health, Identity, Options, Timeouts};
use belay_model::{CacheOptions, Model};
use belay_proto::admin::{self, Phase, Placement};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::devices::Devices;
use crate::lifecycle::{Ending, blocking, open, start_engine};
use crate::loader::{self, LoadError, Opened};
use crate::meeting::Meeting;
use crate::placement::{self, by_own_rank, of_group};
use crate::ranks::{Copy, Ranks};
use crate::room;

/// How soon a target that could not be prepared is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// One worker of a group.
pub struct GroupLife<B: Backend> {
    context: Arc<Context>,
    devices: Devices<B>,
    opened: Opened,
    slot: Slot,
    ranks: Arc<Ranks<B>>,
    group: Arc<Group>,
    is_started: bool,
    /// What the fabric was given: epochs in use and of the target.
    given: (u64, u64),
    /// With the members of a target that is loaded.
    meeting: Option<Meeting>,
}

/// What is to be done in a round.
struct Round {
    load: Vec<Vec<Copy>>,
    /// Copies that some placement gives to these ranks.
    named: Vec<Vec<Copy>>,
    target: u64,
    /// Nothing is in use yet, but a placement is in force for this worker.
    is_first: bool,
}

/// Leads a worker of a group until `stop`.
pub async fn grouped<B: Backend + 'static>(
    context: &Arc<Context>,
    devices: Devices<B>,
    listener: TcpListener,
    stop: &CancellationToken,
) -> Result<(), Ending> {
    let opened = open(context).await?;
    let card = context.shared.get().card.unwrap_or_default();
    let Some(slot) = placement::slot(&context.config, &context.uid, &card) else {
        return Err(LoadError::Options("BELAY_GROUP: missing".into()).into());
    };
    let limit = room::expert_bytes(
        context.config.expert_memory.map(|bytes| bytes as u64),
        room::container_limit(),
        card.dense_bytes,
        context.config.memory as u64,
    );
    let ranks = Arc::new(Ranks::new(&devices, &opened.checkpoint, slot.worker, slot.ranks, limit));
    context.ranks.store(Some(Arc::new(Arc::clone(&ranks) as _)));
    let peers_changed = Arc::new(Notify::new());
    let group = start_group(context, &opened, &slot, listener, Arc::clone(&ranks) as _, &peers_changed)?;
    if let Some(make) = devices.collective() {
        let hidden = opened.checkpoint.config().hidden_size;
        match make(ranks.on_devices(&devices), hidden, context.config.fabric_format) {
            Ok(collective) => group.set_collective(collective)?,
            Err(error) => tracing::warn!(%error, "devices cannot exchange rows: they go over TCP"),
        }
    }
    context.membership.begin(slot.clone());
    context.shared.enter(Phase::WaitingForPlacement, "waiting for SetPlacement");
    let mut taken = context.membership.watch();
    mounted_placement(context).await;

    let mut life = GroupLife {
        context: Arc::clone(context),
        devices,
        opened,
        slot,
        ranks,
        group,
        is_started: false,
        given: (0, 0),
        meeting: None,
    };
    loop {
        taken.borrow_and_update();
        let is_done = life.round().await?;
        life.follow_peers();
        let patience = life.meeting.and_then(|meeting| meeting.ends());
        let look_again = async {
            // room may have come, which nobody tells
            if !context.shared.get().prepare_error.is_empty() {
                tokio::time::sleep(LOOK_AGAIN).await;
            } else if let Some(until) = patience {
                tokio::time::sleep_until(until.into()).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        if !is_done {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = taken.changed() => {}
            () = peers_changed.notified() => {}
            () = look_again => {}
        }
    }
}

fn start_group(
    context: &Context,
    opened: &Opened,
    slot: &Slot,
    listener: TcpListener,
    adopter: Arc<dyn Adopter>,
    peers_changed: &Arc<Notify>,
) -> Result<Arc<Group>, Ending> {
    let key = match &context.config.fabric_key_file {
        // a group that was made without a key goes on without
        Some(file) => match std::fs::read(file) {
            Ok(key) => key,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(LoadError::Options(format!(
                    "BELAY_FABRIC_KEY_FILE: {}: {error}",
                    file.display()
                ))
                .into());
            }
        },
        None => Vec::new(),
    };
    let identity = Identity {
        group: slot.group.clone(),
        revision: slot.revision.clone(),
        digest: opened.checkpoint.card().digest.clone(),
        worker: slot.worker,
        uid: slot.uid.clone(),
        hidden: opened.checkpoint.config().hidden_size as u32,
        format: context.config.fabric_format,
    };
    let timeouts =
        Timeouts { ask: Duration::from_secs(context.config.fabric_timeout_seconds), ..Timeouts::default() };
    let options = Options { timeouts, key, ..Options::default() };
    let notify = Arc::clone(peers_changed);
    let group = Arc::new(Group::start(identity, listener, options, move || notify.notify_one())?);
    group.set_adopter(adopter);
    context.fabric_stats.store(Some(group.stats()));
    context.group.store(Some(Arc::clone(&group)));
    Ok(group)
}

/// Takes the mounted placement if there is one that fits; what does not fit is waited out, since a newer one comes
/// by SetPlacement.
async fn mounted_placement(context: &Context) {
    let Some(path) = context.config.placement_file.clone() else { return };
    let document = match tokio::fs::read(&path).await {
        Ok(json) => serde_json::from_slice::<Placement>(&json).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => Err(error.to_string()),
    };
    let taken = document.and_then(|document| {
        let request = admin::SetPlacementRequest { in_force: Some(document), ..Default::default() };
        let outcome = context.membership.accept(&request).unwrap_or(Ok(()));
        outcome.map_err(|refusal| refusal.to_string())
    });
    if let Err(reason) = taken {
        tracing::warn!(path = %path.display(), reason, "the mounted placement does not fit");
        context.shared.enter(
            Phase::WaitingForPlacement,
            format!("waiting for SetPlacement; the mounted placement does not fit: {reason}"),
        );
    }
}

impl<B: Backend + 'static> GroupLife<B> {
    /// Does what there is to do; false if something came in between, and another round is due.
    async fn round(&mut self) -> Result<bool, Ending> {
        let Some(round) = self.look() else {
            // nobody is waited for without a target: patience that has ended would wake this loop for ever
            self.meeting = None;
            self.wait_for_a_seat();
            return Ok(true);
        };
        self.ranks.name(&round.named);
        let loaded = self.load(&round).await?;
        self.hand_over()?;
        self.drop_copies();
        self.report();
        Ok(loaded)
    }

    /// `None` while no placement concerns this worker.
    fn look(&self) -> Option<Round> {
        let slot = &self.slot;
        self.context.membership.with(|member| {
            let concerns = |document: &Arc<Placement>| {
                belay_epoch::document::is_member(document, slot.worker, &slot.uid)
            };
            let is_mine = member.in_force().is_some_and(concerns);
            if !is_mine && !member.target().is_some_and(concerns) && member.in_use().is_none() {
                return None;
            }
            let load = member.to_load();
            let going = member.to_drop();
            let staying = member.resident().iter().copied().filter(|copy| !going.contains(copy));
            let mut named = by_own_rank(staying, slot);
            named.iter_mut().zip(&load).for_each(|(named, load)| named.extend(load));
            let target = member.target().map_or(0, |target| target.epoch);
            Some(Round { load, named, target, is_first: is_mine && member.in_use().is_none() })
        })?
    }

    /// Says why nothing is done about a placement that has somebody else here.
    fn wait_for_a_seat(&self) {
        let named = self.context.membership.with(|member| {
            let document = member.in_force()?;
            let uid = belay_epoch::document::uid(document, self.slot.worker).unwrap_or("nobody");
            Some(format!("epoch {} has uid {uid} in this slot; waiting for a later one", document.epoch))
        });
        if let Some(message) = named.flatten() {
            self.context.shared.enter(Phase::WaitingForPlacement, message);
        }
    }

    /// Loads what is missing; false if something else was asked meanwhile.
    async fn load(&mut self, round: &Round) -> Result<bool, Ending> {
        let is_nothing = round.load.iter().all(Vec::is_empty);
        if is_nothing && self.is_started {
            return Ok(true);
        }
        if !self.is_started {
            let model = self.load_dense(&round.load).await?;
            start_engine(&self.context, model, Arc::clone(&self.group) as Arc<dyn Fabric>, &self.opened)?;
            self.is_started = true;
        }
        let (ranks, shared) = (Arc::clone(&self.ranks), Arc::clone(&self.context.shared));
        let (wanted, taken) = (round.load.clone(), self.context.membership.watch());
        let (base, total) = (self.base_bytes(round), self.ranks.missing_bytes(&wanted));
        let progress = move |done: u64| {
            match base {
                Some(base) => shared.load_progress(base + done, base + total),
                None => shared.prepare_progress(done, total),
            };
        };
        let begun = *taken.borrow();
        let outcome = blocking(move || {
            let stop = || *taken.borrow() != begun;
            let outcome = ranks.load(&wanted, &stop, &mut { progress });
            Ok((outcome, stop()))
        })
        .await?;
        let resident = self.ranks.resident();
        let here: Vec<Vec<Copy>> = round
            .load
            .iter()
            .zip(&resident)
            .map(|(wanted, held)| {
                wanted.iter().copied().filter(|copy| held.binary_search(copy).is_ok()).collect()
            })
            .collect();
        self.context.membership.with(|member| member.loaded(of_group(&here, &self.slot)));
        match outcome {
            (Ok(()), interrupted) => {
                self.context.shared.change(|state| state.prepare_error.clear());
                Ok(!interrupted)
            }
            // of no use as it is; without room for a target alone, another target may do
            (Err(error), _) if round.is_first || (self.given.0 == 0 && !error.is_room()) => Err(error.into()),
            (Err(error), interrupted) => {
                tracing::warn!(epoch = round.target, %error, "the target can't be prepared");
                self.context.shared.change(|state| state.prepare_error = error.to_string());
                Ok(!interrupted)
            }
        }
    }

    /// Bytes of the first load that were there before its experts; `None` for what is loaded beside serving.
    fn base_bytes(&self, round: &Round) -> Option<u64> {
        let dense = self.opened.checkpoint.card().dense_bytes;
        let nothing_used = round.is_first || self.given.0 == 0;
        nothing_used.then_some(dense)
    }

    async fn load_dense(&self, experts: &[Vec<Copy>]) -> Result<Model<B>, Ending> {
        let context = &self.context;
        context.shared.enter(Phase::Loading, "loading weights");
        let started = Instant::now();
        let (backend, shared) = (Arc::clone(self.devices.dense()), Arc::clone(&context.shared));
        let checkpoint = Arc::clone(&self.opened.checkpoint);
        let cache = CacheOptions { memory: context.config.memory, format: context.config.kv_format };
        let total = checkpoint.card().dense_bytes + self.ranks.missing_bytes(experts);
        let model = blocking(move || loader::dense(&backend, &checkpoint, cache, total, &shared)).await?;
        tracing::info!(seconds = started.elapsed().as_secs_f64(), "dense weights loaded");
        Ok(match context.config.halves_from {
            0 => model,
            rows => model.with_halves(rows as usize),
        })
    }

    /// Gives the fabric what is in use and what comes next, if that is news.
    fn hand_over(&mut self) -> Result<(), Ending> {
        let placements =
            self.context.membership.with(|member| (member.in_use().cloned(), member.target().cloned()));
        let Some((used, target)) = placements else { return Ok(()) };
        let epochs = (used.as_ref().map_or(0, |p| p.epoch), target.as_ref().map_or(0, |p| p.epoch));
        if epochs == self.given {
            return Ok(());
        }
        let table = |document: &Arc<Placement>| {
            placement::table(document).map_err(|error| LoadError::Options(format!("placement: {error}")))
        };
        let (used, target) = (used.as_ref().map(table).transpose()?, target.as_ref().map(table).transpose()?);
        self.group.update(used, target, self.ranks.compute())?;
        if epochs.0 != self.given.0 {
            tracing::info!(epoch = epochs.0, "placement in use");
        }
        self.given = epochs;
        Ok(())
    }

    fn drop_copies(&self) {
        let going = self.context.membership.with(|member| member.to_drop()).unwrap_or_default();
        if going.is_empty() {
            return;
        }
        // named anew: what goes is no longer protected
        if let Some(round) = self.look() {
            self.ranks.name(&round.named);
        }
        self.ranks.unload(&by_own_rank(going.iter().copied(), &self.slot));
        tracing::info!(copies = going.len(), "dropped experts that are elsewhere now");
        self.context.membership.with(|member| member.dropped(going));
    }

    fn report(&mut self) {
        let epochs = self.context.membership.with(|member| {
            let used = member.in_use().map_or(0, |document| document.epoch);
            (used, member.prepared_epoch(), member.retired_epoch(), member.target().cloned())
        });
        let Some((epoch, loaded, retired, target)) = epochs else { return };
        let prepared = match target.as_deref().filter(|target| target.epoch == loaded) {
            Some(target) if !self.has_met(target) => epoch,
            Some(_) => loaded,
            None => {
                self.meeting = None;
                loaded
            }
        };
        let has_target = target.is_some();
        if !has_target {
            self.context.shared.prepare_progress(0, 0);
        }
        let ranks = self.ranks.status();
        self.context.shared.change(|state| {
            (state.epoch, state.prepared, state.retired) = (epoch, prepared, retired);
            state.ranks = ranks;
            if !has_target {
                state.prepare_error.clear();
            }
        });
    }

    /// Whether the other members of a target that is loaded need not be waited for.
    fn has_met(&mut self, target: &Placement) -> bool {
        let now = Instant::now();
        let begun = self.meeting.filter(|meeting| meeting.epoch() == target.epoch);
        let mut meeting = begun.unwrap_or_else(|| Meeting::begin(target.epoch, now));
        let has_met = meeting.is_over(target, &self.group.peers(), now);
        self.meeting = Some(meeting);
        has_met
    }

    /// Ready while every expert has a live copy, else connecting.
    fn follow_peers(&self) {
        let shared = &self.context.shared;
        if !self.is_started {
            return;
        }
        let coverage = self.group.coverage();
        if self.given.0 == 0 {
            // nothing is in use here, so what the fabric was given is the target
            let message = match (shared.get().prepared, self.given.1) {
                (0, target) => format!("epoch {target} is loaded; connecting to its members"),
                (prepared, _) => format!("epoch {prepared} is loaded; waiting for its commit"),
            };
            shared.enter(Phase::Connecting, message);
            return;
        }
        if coverage.uncovered == 0 {
            shared.enter(Phase::Ready, "");
            return;
        }
        let away: Vec<String> = self
            .group
            .peers()
            .iter()
            .filter(|peer| peer.health != Health::Live)
            .map(|peer| format!("worker {}: {}", peer.worker, peer.message))
            .collect();
        let missing = format!("{} of {} experts have no live copy", coverage.uncovered, coverage.experts);
        shared.enter(Phase::Connecting, format!("{missing}; {}", away.join("; ")));
    }
}
