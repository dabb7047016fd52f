//! The Auth service: each call is a request that goes through the log.

use proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, auth_server::Auth,
};
use state::{AuthReply, Error};
use tonic::{Request, Response, Status};

use crate::{Backend, backend::AuthRequest, caller::Caller, gate, status};

pub(crate) struct AuthService<B>(pub B);

/// One call: its request as the backend takes it, its reply as the client does.
macro_rules! calls {
    ($($method:ident, $request:ident, $response:ident, $of:expr, $reply:expr;)*) => {
        #[tonic::async_trait]
        impl<B: Backend> Auth for AuthService<B> {
            $(async fn $method(
                &self,
                request: Request<$request>,
            ) -> Result<Response<$response>, Status> {
                gate::pass(&self.0, request.metadata(), false)?;
                let caller = Caller::of(&self.0, &request);
                let of: fn($request) -> AuthRequest = $of;
                let answered: fn(AuthReply) -> Option<$response> = $reply;
                let reply = self.0.auth(&caller, of(request.into_inner())).await;
                // The reply to another request would be a fault of the backend.
                let response = answered(reply.map_err(status::of)?);
                let mut response = response.ok_or_else(|| status::of(Error::Stopped))?;
                status::fill(&self.0, &mut response.header);
                Ok(Response::new(response))
            })*
        }
    };
}

/// Takes the header of a reply that has nothing else.
macro_rules! done {
    ($response:ident) => {
        |reply| match reply {
            AuthReply::Done(header) => Some($response { header }),
            _ => None,
        }
    };
}

macro_rules! only {
    ($kind:ident) => {
        |reply| match reply {
            AuthReply::$kind(response, ..) => Some(response),
            _ => None,
        }
    };
}

calls! {
    auth_enable, AuthEnableRequest, AuthEnableResponse,
        |_| AuthRequest::Enable, done!(AuthEnableResponse);
    auth_disable, AuthDisableRequest, AuthDisableResponse,
        |_| AuthRequest::Disable, done!(AuthDisableResponse);
    auth_status, AuthStatusRequest, AuthStatusResponse,
        |_| AuthRequest::Status, only!(Status);
    authenticate, AuthenticateRequest, AuthenticateResponse,
        AuthRequest::Authenticate, only!(Authenticated);
    user_add, AuthUserAddRequest, AuthUserAddResponse,
        AuthRequest::UserAdd, done!(AuthUserAddResponse);
    user_get, AuthUserGetRequest, AuthUserGetResponse,
        AuthRequest::UserGet, only!(User);
    user_list, AuthUserListRequest, AuthUserListResponse,
        |_| AuthRequest::UserList, only!(Users);
    user_delete, AuthUserDeleteRequest, AuthUserDeleteResponse,
        AuthRequest::UserDelete, done!(AuthUserDeleteResponse);
    user_change_password, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
        AuthRequest::UserChangePassword, done!(AuthUserChangePasswordResponse);
    user_grant_role, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
        AuthRequest::UserGrantRole, done!(AuthUserGrantRoleResponse);
    user_revoke_role, AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse,
        AuthRequest::UserRevokeRole, done!(AuthUserRevokeRoleResponse);
    role_add, AuthRoleAddRequest, AuthRoleAddResponse,
        AuthRequest::RoleAdd, done!(AuthRoleAddResponse);
    role_get, AuthRoleGetRequest, AuthRoleGetResponse,
        AuthRequest::RoleGet, only!(Role);
    role_list, AuthRoleListRequest, AuthRoleListResponse,
        |_| AuthRequest::RoleList, only!(Roles);
    role_delete, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
        AuthRequest::RoleDelete, done!(AuthRoleDeleteResponse);
    role_grant_permission, AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse,
        AuthRequest::RoleGrantPermission, done!(AuthRoleGrantPermissionResponse);
    role_revoke_permission, AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse,
        AuthRequest::RoleRevokePermission, done!(AuthRoleRevokePermissionResponse);
}
