//! Errors as `application/problem+json` (RFC 9457), both ways.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use crate::api::{Failure, FailureKind};

pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A failure with the status it is answered with.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) failure: Failure,
}

/// RFC 9457, section 3.1, and the `kind` of [`Failure`] as an extension.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    kind: FailureKind,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self {
            status: status_of(failure.kind),
            failure,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self {
            status,
            failure: Failure { kind, message },
        } = self;
        let body = Body {
            r#type: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: message,
            kind,
        };
        let json = serde_json::to_vec(&body).expect("texts and numbers are always JSON");
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], json).into_response();
        if status == StatusCode::UNAUTHORIZED {
            // RFC 6750, section 3.
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// What any request may be answered with instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its shape is used")]
pub(super) enum Problems {
    /// The request makes no sense.
    #[response(status = 400, content_type = "application/problem+json")]
    Usage(Body),
    /// Over TCP: the token is missing or wrong.
    #[response(status = 401, content_type = "application/problem+json")]
    NoToken(Body),
    /// It is not for this user.
    #[response(status = 403, content_type = "application/problem+json")]
    Strange(Body),
    /// There is no such thing, or it is somebody else's.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Body),
    /// This path has another method.
    #[response(status = 405, content_type = "application/problem+json")]
    OtherMethod(Body),
    /// The job's state does not allow it.
    #[response(status = 409, content_type = "application/problem+json")]
    WrongState(Body),
    /// The job has changed since.
    #[response(status = 412, content_type = "application/problem+json")]
    Changed(Body),
    /// The body is too long.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLong(Body),
    /// The user's quota is used up.
    #[response(status = 429, content_type = "application/problem+json")]
    Quota(Body),
    /// This machine's disk failed.
    #[response(status = 500, content_type = "application/problem+json")]
    LocalDisk(Body),
    /// The agent is ending.
    #[response(status = 503, content_type = "application/problem+json")]
    Ending(Body),
}

/// Reads the body that [`Problem`] writes.
pub(super) fn failure_of(body: &[u8]) -> Option<Failure> {
    let body: Body = serde_json::from_slice(body).ok()?;
    Some(Failure::new(body.kind, body.detail))
}

/// The HTTP status of each kind of failure: the one place where it is decided.
fn status_of(kind: FailureKind) -> StatusCode {
    match kind {
        FailureKind::Usage => StatusCode::BAD_REQUEST,
        FailureKind::OriginRefused | FailureKind::Network | FailureKind::Verification => {
            StatusCode::BAD_GATEWAY
        }
        FailureKind::LocalDisk => StatusCode::INTERNAL_SERVER_ERROR,
        FailureKind::AgentUnreachable | FailureKind::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
    }
}
