//! How a failure class crosses the wire: [`FailureKind`] to ttrpc status and back.
//!
//! Owns: the one table of codes named in `agent.proto`. Never: message texts.
//! Called by the agent's service (to refuse) and by `client` (to understand).

use bulkhead_model::FailureKind;
use ttrpc::proto::{Any, Code, Status};

/// Detail that tells "the program does not exist" from "the container does not exist".
const PROGRAM_NOT_FOUND: &str = "bulkhead.agent.v1/PROGRAM_NOT_FOUND";

/// The error a service method returns to refuse a call: `message` is one line for the user.
#[must_use]
pub fn refuse(kind: FailureKind, message: impl Into<String>) -> ttrpc::Error {
    let mut status = Status::new();
    status.set_code(code(kind));
    status.message = message.into();
    if kind == FailureKind::ProgramNotFound {
        let mut detail = Any::new();
        detail.type_url = PROGRAM_NOT_FOUND.to_owned();
        status.details.push(detail);
    }
    ttrpc::Error::RpcStatus(status)
}

/// The class of a status that was not OK.
#[must_use]
pub(crate) fn kind_of(status: &Status) -> FailureKind {
    match status.code() {
        Code::NOT_FOUND if status.details.iter().any(|d| d.type_url == PROGRAM_NOT_FOUND) => {
            FailureKind::ProgramNotFound
        }
        Code::NOT_FOUND => FailureKind::NotFound,
        Code::PERMISSION_DENIED => FailureKind::ProgramNotExecutable,
        Code::ALREADY_EXISTS => FailureKind::AlreadyExists,
        Code::FAILED_PRECONDITION => FailureKind::FailedPrecondition,
        Code::INVALID_ARGUMENT => FailureKind::InvalidArgument,
        Code::DEADLINE_EXCEEDED => FailureKind::DeadlineExceeded,
        Code::UNAVAILABLE => FailureKind::Unavailable,
        Code::CANCELLED => FailureKind::Cancelled,
        Code::UNIMPLEMENTED => FailureKind::Unsupported,
        _ => FailureKind::Internal,
    }
}

const fn code(kind: FailureKind) -> Code {
    match kind {
        FailureKind::NotFound | FailureKind::ProgramNotFound => Code::NOT_FOUND,
        FailureKind::ProgramNotExecutable => Code::PERMISSION_DENIED,
        FailureKind::AlreadyExists => Code::ALREADY_EXISTS,
        FailureKind::FailedPrecondition => Code::FAILED_PRECONDITION,
        FailureKind::InvalidArgument => Code::INVALID_ARGUMENT,
        FailureKind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        FailureKind::Unavailable => Code::UNAVAILABLE,
        FailureKind::Cancelled => Code::CANCELLED,
        FailureKind::Unsupported => Code::UNIMPLEMENTED,
        FailureKind::Internal => Code::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        use protobuf::Message;
        for kind in [
            FailureKind::NotFound,
            FailureKind::AlreadyExists,
            FailureKind::FailedPrecondition,
            FailureKind::InvalidArgument,
            FailureKind::DeadlineExceeded,
            FailureKind::Unavailable,
            FailureKind::Cancelled,
            FailureKind::Unsupported,
            FailureKind::ProgramNotFound,
            FailureKind::ProgramNotExecutable,
            FailureKind::Internal,
        ] {
            let ttrpc::Error::RpcStatus(status) = refuse(kind, "why") else {
                panic!("a refusal is a status")
            };
            let wire = status.write_to_bytes().unwrap();
            let back = Status::parse_from_bytes(&wire).unwrap();
            assert_eq!(kind_of(&back), kind);
            assert_eq!(back.message, "why");
        }
    }
}
