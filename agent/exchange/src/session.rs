//! One swarm at one peer, joined: both sides have proved that they know the content's key.

use std::sync::Arc;
use std::time::Duration;

use branchline_core::repair::Claim;
use branchline_core::wire::{
    CloseCode, Have, RequesterMessage, ResponderMessage, Standing, WireMessage,
};
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_hashing::{ContentKey, SwarmId};
use bytes::Bytes;
use quinn::{RecvStream, SendStream};

use crate::download::{self, Download, DownloadSpec};
use crate::error::{Misbehaviour, PeerFailure};
use crate::hub::{HubHandle, Link};
use crate::proof::{SessionSecret, Side};
use crate::reading::{MessageReader, ReceiveError};
use crate::watch::{self, HaveWatch};

/// How long to wait until the peer lets another stream be opened. That is no slowness of the peer:
/// this agent's other downloads have them all. Bounded for a peer that never lets one be opened.
const STREAM_DEADLINE: Duration = Duration::from_secs(30);

/// A swarm joined at a peer. The connection lives as long as a session or download on it.
#[derive(Clone)]
pub struct PeerSession {
    hub: HubHandle,
    link: Arc<Link>,
    key: ContentKey,
    standing: Standing,
    have: Arc<Have>,
}

impl PeerSession {
    pub(crate) async fn join(
        hub: HubHandle,
        link: Arc<Link>,
        key: ContentKey,
    ) -> Result<Self, PeerFailure> {
        let on = Arc::clone(&link);
        let (standing, have) = hub
            .run(async move {
                let joined = JoinedStream::open(&on, &key).await?;
                Ok((joined.standing, joined.have))
            })
            .await?;
        Ok(Self {
            hub,
            link,
            key,
            standing,
            have: Arc::new(have),
        })
    }

    /// Whose session it is.
    pub fn peer(&self) -> PeerId {
        self.link.peer
    }

    /// The peer's word, when the session began, on how many segments the content has.
    pub fn claimed_segments(&self) -> u32 {
        self.have.size()
    }

    /// The peer's word, when the session began, on how far what it gives may be believed.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// What the peer had when the session began, of the manifest's number of segments.
    ///
    /// # Errors
    /// [`PeerFailure::Misbehaved`] when it speaks of another number.
    pub fn have(&self, segments: u32) -> Result<SegmentSet, PeerFailure> {
        sized(&self.have, segments)
    }

    /// What the peer has by now.
    ///
    /// # Errors
    /// [`PeerFailure`].
    pub async fn ask_have(&self, segments: u32) -> Result<SegmentSet, PeerFailure> {
        let (link, key) = (Arc::clone(&self.link), self.key);
        let have = self.hub.run(async move {
            let mut stream = JoinedStream::open(&link, &key).await?;
            stream
                .ask(&link, RequesterMessage::HaveRequest, read_have)
                .await
        });
        sized(&have.await?, segments)
    }

    /// What the peer has, and then what it comes to have, as it comes.
    pub fn watch(&self, segments: u32) -> HaveWatch {
        watch::start(&self.hub, Arc::clone(&self.link), self.key, segments)
    }

    /// Which bytes the peer has for each segment of `range`, by its own word.
    ///
    /// # Errors
    /// [`PeerFailure`].
    pub async fn claims(&self, range: SegmentRange) -> Result<Vec<Option<Claim>>, PeerFailure> {
        let (link, key) = (Arc::clone(&self.link), self.key);
        let claims = self.hub.run(async move {
            let mut stream = JoinedStream::open(&link, &key).await?;
            let question = RequesterMessage::HashesRequest(range);
            let read = |message| read_claims(message, range);
            stream.ask(&link, question, read).await
        });
        claims.await
    }

    /// The manifest, head and body, as the peer has it: unverified, at most `limit_bytes`. `None`
    /// when the peer holds the content without one.
    ///
    /// # Errors
    /// [`PeerFailure`].
    pub async fn manifest(&self, limit_bytes: usize) -> Result<Option<Bytes>, PeerFailure> {
        let (link, key) = (Arc::clone(&self.link), self.key);
        let manifest = self.hub.run(async move {
            let mut stream = JoinedStream::open(&link, &key).await?;
            let length = stream.ask(&link, RequesterMessage::ManifestRequest, |message| {
                read_manifest_length(message, limit_bytes)
            });
            match length.await? {
                None => Ok(None),
                Some(length) => {
                    let body = stream.reader.untrusted_body(length).await;
                    Ok(Some(body.map_err(|e| received(&link, e, "a manifest"))?))
                }
            }
        });
        manifest.await
    }

    /// Opens the streams that segments come on, and says to `spec.events` what arrives.
    pub fn download(&self, spec: DownloadSpec) -> Download {
        download::start(&self.hub, Arc::clone(&self.link), self.key, spec)
    }

    /// Closes the connection to a peer that sent wrong bytes; every session and download on it fails.
    pub fn cut_off(&self, reason: &str) {
        self.link.close(CloseCode::Misbehaved, reason);
    }
}

/// A stream on which the join was answered with a right proof.
pub(crate) struct JoinedStream {
    pub(crate) send: SendStream,
    pub(crate) reader: MessageReader,
    pub(crate) standing: Standing,
    pub(crate) have: Have,
}

impl JoinedStream {
    /// Opens a stream and joins the swarm on it.
    pub(crate) async fn open(link: &Link, key: &ContentKey) -> Result<Self, PeerFailure> {
        let stream = open_stream(link).await?;
        within(link.answer_timeout, join_on(stream, link, key))
            .await
            .inspect_err(|failure| note_misbehaviour(link, failure))
    }

    /// One question, one answer.
    pub(crate) async fn ask<T>(
        &mut self,
        link: &Link,
        question: RequesterMessage,
        read: impl FnOnce(ResponderMessage) -> Result<T, PeerFailure>,
    ) -> Result<T, PeerFailure> {
        let answer = async {
            send_message(&mut self.send, question).await?;
            next_message(&mut self.reader, "an answer")
                .await
                .and_then(read)
        };
        within(link.answer_timeout, answer)
            .await
            .inspect_err(|failure| note_misbehaviour(link, failure))
    }
}

pub(crate) async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, PeerFailure>>,
) -> Result<T, PeerFailure> {
    let waited = deadline;
    let result = tokio::time::timeout(deadline, work).await;
    result.unwrap_or(Err(PeerFailure::TimedOut { waited }))
}

/// Closes the connection to a peer that broke the protocol.
pub(crate) fn note_misbehaviour(link: &Link, failure: &PeerFailure) {
    if let PeerFailure::Misbehaved(misbehaviour) = failure {
        tracing::warn!(peer = %link.peer, %misbehaviour, "peer cut off");
        link.close(CloseCode::Misbehaved, &misbehaviour.to_string());
    }
}

pub(crate) async fn send_message(
    send: &mut SendStream,
    message: RequesterMessage,
) -> Result<(), PeerFailure> {
    send.write_all(&message.to_bytes())
        .await
        .map_err(|error| PeerFailure::lost(&error))
}

/// The next message; the stream must not end before it.
pub(crate) async fn next_message(
    reader: &mut MessageReader,
    what: &'static str,
) -> Result<ResponderMessage, PeerFailure> {
    match reader.next().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Misbehaviour::Truncated { what }.into()),
        Err(error) => Err(failure(error, what)),
    }
}

pub(crate) fn failure(error: ReceiveError, what: &'static str) -> PeerFailure {
    match error {
        ReceiveError::Wire(error) => Misbehaviour::Wire(error).into(),
        ReceiveError::Truncated => Misbehaviour::Truncated { what }.into(),
        error @ ReceiveError::TooLong { .. } => {
            let message = error.to_string();
            Misbehaviour::OutOfPlace { message }.into()
        }
        ReceiveError::Stream(error) => PeerFailure::lost(&error),
    }
}

pub(crate) fn out_of_place(message: &ResponderMessage) -> PeerFailure {
    Misbehaviour::OutOfPlace {
        message: format!("{message:?}"),
    }
    .into()
}

pub(crate) fn sized(have: &Have, segments: u32) -> Result<SegmentSet, PeerFailure> {
    let wrong = Misbehaviour::WrongSegmentCount {
        expected: segments,
        found: have.size(),
    };
    have.to_set(segments).ok_or(PeerFailure::Misbehaved(wrong))
}

fn received(link: &Link, error: ReceiveError, what: &'static str) -> PeerFailure {
    let failure = failure(error, what);
    note_misbehaviour(link, &failure);
    failure
}

/// Waits until the peer lets another stream be opened.
pub(crate) async fn open_stream(link: &Link) -> Result<(SendStream, RecvStream), PeerFailure> {
    let opening = async {
        let opened = link.connection.open_bi().await;
        opened.map_err(|error| PeerFailure::lost(&error))
    };
    within(STREAM_DEADLINE, opening).await
}

async fn join_on(
    (mut send, receive): (SendStream, RecvStream),
    link: &Link,
    key: &ContentKey,
) -> Result<JoinedStream, PeerFailure> {
    let swarm: SwarmId = key.swarm_id();
    let secret = SessionSecret::of(&link.connection, &swarm)?;
    let mut reader = MessageReader::new(receive);
    let proof = secret.prove(key, Side::Requester);
    send_message(&mut send, RequesterMessage::Join { swarm, proof }).await?;
    match next_message(&mut reader, "the answer to a join").await? {
        ResponderMessage::Joined {
            proof,
            standing,
            have,
        } => {
            if !secret.check(key, Side::Responder, &proof) {
                return Err(Misbehaviour::WrongProof.into());
            }
            Ok(JoinedStream {
                send,
                reader,
                standing,
                have,
            })
        }
        ResponderMessage::Unknown => Err(PeerFailure::Unknown),
        ResponderMessage::Busy { retry_after } => Err(PeerFailure::Busy { retry_after }),
        other @ (ResponderMessage::Segment { .. }
        | ResponderMessage::Absent { .. }
        | ResponderMessage::RangeBusy { .. }
        | ResponderMessage::Manifest { .. }
        | ResponderMessage::NoManifest
        | ResponderMessage::Have(_)
        | ResponderMessage::HaveMore(_)
        | ResponderMessage::Answer(_)
        | ResponderMessage::Hashes { .. }) => Err(out_of_place(&other)),
    }
}

pub(crate) fn read_have(message: ResponderMessage) -> Result<Have, PeerFailure> {
    match message {
        ResponderMessage::Have(have) => Ok(have),
        ResponderMessage::Busy { retry_after } => Err(PeerFailure::Busy { retry_after }),
        other @ (ResponderMessage::Joined { .. }
        | ResponderMessage::Unknown
        | ResponderMessage::Segment { .. }
        | ResponderMessage::Absent { .. }
        | ResponderMessage::RangeBusy { .. }
        | ResponderMessage::Manifest { .. }
        | ResponderMessage::NoManifest
        | ResponderMessage::HaveMore(_)
        | ResponderMessage::Answer(_)
        | ResponderMessage::Hashes { .. }) => Err(out_of_place(&other)),
    }
}

fn read_claims(
    message: ResponderMessage,
    range: SegmentRange,
) -> Result<Vec<Option<Claim>>, PeerFailure> {
    let as_asked = |first, claims: &[Option<Claim>]| {
        range.first() == first && claims.len() == range.count() as usize
    };
    match message {
        ResponderMessage::Hashes { first, claims } if as_asked(first, &claims) => Ok(claims),
        ResponderMessage::Busy { retry_after } => Err(PeerFailure::Busy { retry_after }),
        other @ (ResponderMessage::Joined { .. }
        | ResponderMessage::Unknown
        | ResponderMessage::Segment { .. }
        | ResponderMessage::Absent { .. }
        | ResponderMessage::RangeBusy { .. }
        | ResponderMessage::Manifest { .. }
        | ResponderMessage::NoManifest
        | ResponderMessage::Have(_)
        | ResponderMessage::HaveMore(_)
        | ResponderMessage::Answer(_)
        | ResponderMessage::Hashes { .. }) => Err(out_of_place(&other)),
    }
}

fn read_manifest_length(
    message: ResponderMessage,
    limit: usize,
) -> Result<Option<usize>, PeerFailure> {
    match message {
        ResponderMessage::NoManifest => Ok(None),
        ResponderMessage::Busy { retry_after } => Err(PeerFailure::Busy { retry_after }),
        ResponderMessage::Manifest { length } => match usize::try_from(length) {
            Ok(bytes) if bytes <= limit => Ok(Some(bytes)),
            _ => Err(Misbehaviour::ManifestTooLong { length, limit }.into()),
        },
        other @ (ResponderMessage::Joined { .. }
        | ResponderMessage::Unknown
        | ResponderMessage::Segment { .. }
        | ResponderMessage::Absent { .. }
        | ResponderMessage::RangeBusy { .. }
        | ResponderMessage::Have(_)
        | ResponderMessage::HaveMore(_)
        | ResponderMessage::Answer(_)
        | ResponderMessage::Hashes { .. }) => Err(out_of_place(&other)),
    }
}
