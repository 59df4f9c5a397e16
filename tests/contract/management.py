"""Zitadel's official Python client and its models: they drive the stand-in, and judge what was said on the wire.

The client's models are those of the GA services `project.v2`, `authorization.v2` and `user.v2`. They ignore what they do
not know; here a field that they do not know is an error.
"""

import json
import os
import subprocess
import sys
import tempfile
import typing
import urllib.parse
from pathlib import Path

import pydantic
import zitadel_client as sdk
from zitadel_client import models


class StandIn:
    """The stand-in as a process; ends with the block."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [os.environ["ZITADEL_STAND_IN"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.held = json.loads(self.process.stdout.readline())
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=20)

    def __getattr__(self, name):
        return self.held[name]

    def exchanges(self):
        """What was said since the last time."""
        self.process.stdin.write("exchanges\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def nested(annotation):
    """The models that an annotation speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in nested(part)]


def check(model, value, at):
    """Fails unless `value` is the JSON of a message, with no field that the message lacks."""
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    unknown = set(value) - set(known)
    assert not unknown, f"{at}: {model.__name__} has no {sorted(unknown)}"
    if model.__name__.endswith(("SearchFilter", "SearchQuery")):
        assert len(value) == 1, f"{at}: a filter is one of its members, not {sorted(value)}"
    for name, inner in value.items():
        for kind in nested(known[name].annotation):
            for n, item in enumerate(inner if isinstance(inner, list) else [inner]):
                check(kind, item, f"{at}.{name}[{n}]")
    model.from_dict(value)


def message(path, kind):
    """The model of a call's request or response."""
    service, method = path.strip("/").split("/")
    return getattr(models, f"{service.split('.')[-1]}{method}{kind}")


def judge(exchanges, who):
    """Checks what was said by Connect; gives how many calls that were."""
    calls = [exchange for exchange in exchanges if exchange["path"].startswith("/zitadel.")]
    for call in calls:
        assert call["method"] == "POST" and call["organization"] is None, call
        check(message(call["path"], "Request"), call["request"], call["path"])
        if call["status"] == 200:
            check(message(call["path"], "Response"), call["answer"], f"{call['path']} answer")
    print(f"{who}: {len(calls)} Connect calls of {len({c['path'] for c in calls})} methods, no unknown field")
    return len(calls)


def refused(status, code, call, *arguments):
    """Calls what must be refused."""
    try:
        call(*arguments)
    except sdk.exceptions.ApiError as error:
        body = error.response_body if isinstance(error.response_body, dict) else json.loads(error.response_body)
        assert (error.code, body["code"]) == (status, code), (error.code, body)
        return
    raise AssertionError(f"{call.__name__} was not refused with {status}")


def drive(client, at):
    """Every call that alchemi makes, made by the official client."""
    projects, grants, users = client.projects, client.authorizations, client.users
    project, ada, bob = at.project, at.ada, at.bob
    owned = projects.get_project(models.ProjectServiceGetProjectRequest(projectId=project)).project
    assert (owned.project_id, owned.organization_id) == (project, at.owner), owned
    for key in ("reader", "writer"):
        role = models.ProjectServiceAddProjectRoleRequest(projectId=project, roleKey=key, displayName=key.title())
        projects.add_project_role(role)
    refused(409, "already_exists", projects.add_project_role, role)
    listed = projects.list_project_roles(models.ProjectServiceListProjectRolesRequest(projectId=project))
    assert sorted(role.key for role in listed.project_roles) == ["reader", "writer"], listed

    granted = {"projectId": project, "grantedOrganizationId": at.tenant}
    projects.create_project_grant(models.ProjectServiceCreateProjectGrantRequest(**granted, roleKeys=["reader"]))
    projects.update_project_grant(
        models.ProjectServiceUpdateProjectGrantRequest(**granted, roleKeys=["reader", "writer"])
    )
    by_project = models.ProjectServiceProjectGrantSearchFilter(
        inProjectIdsFilter=models.ProjectServiceInIDsFilter(ids=[project])
    )
    found = projects.list_project_grants(models.ProjectServiceListProjectGrantsRequest(filters=[by_project]))
    assert found.project_grants[0].granted_role_keys == ["reader", "writer"], found

    new = models.AuthorizationServiceCreateAuthorizationRequest(
        userId=ada, projectId=project, organizationId=at.tenant, roleKeys=["reader"]
    )
    made = grants.create_authorization(new).id
    refused(409, "already_exists", grants.create_authorization, new)
    both = models.AuthorizationServiceUpdateAuthorizationRequest(id=made, roleKeys=["reader", "writer"])
    grants.update_authorization(both)
    grants.update_authorization(both)
    own = models.AuthorizationServiceCreateAuthorizationRequest(
        userId=bob, projectId=project, organizationId=at.owner, roleKeys=["writer"]
    )
    grants.create_authorization(own)

    def of(user):
        filters = [
            {"inUserIds": {"ids": [user]}},
            {"projectId": {"id": project}},
        ]
        pagination = {"limit": 10, "offset": "0", "asc": True}
        asked = {"filters": filters, "pagination": pagination}
        return grants.list_authorizations(models.AuthorizationServiceListAuthorizationsRequest.from_dict(asked))

    (shown,) = of(ada).authorizations
    assert (shown.id, shown.organization.id, shown.project.organization_id) == (made, at.tenant, at.owner), shown
    assert sorted(role.key for role in shown.roles) == ["reader", "writer"], shown
    assert shown.state == models.AuthorizationServiceState.STATE_ACTIVE, shown
    delete = models.AuthorizationServiceDeleteAuthorizationRequest(id=made)
    grants.delete_authorization(delete)
    grants.delete_authorization(delete)
    assert not of(ada).authorizations
    refused(404, "not_found", grants.update_authorization, both)

    by_email = {"emailQuery": {"emailAddress": "ADA@acme.com", "method": "TEXT_QUERY_METHOD_EQUALS_IGNORE_CASE"}}
    in_tenant = {"organizationIdQuery": {"organizationId": at.tenant}}
    people = users.list_users(models.UserServiceListUsersRequest.from_dict({"queries": [by_email, in_tenant]}))
    assert [user.user_id for user in people.result] == [ada], people


def must_fail(method, request):
    """A judge that lets everything pass judges nothing."""
    call = {"method": "POST", "organization": None, "status": 0, "request": request}
    try:
        judge([call | {"path": f"/zitadel.authorization.v2.AuthorizationService/{method}"}], "nobody")
    except (AssertionError, pydantic.ValidationError):
        return
    raise AssertionError(f"{request} passed as {method}")


def main():
    by_official = 0
    with StandIn() as at:
        drive(sdk.Zitadel.with_access_token(at.url, at.token), at)
        by_official += judge(at.exchanges(), "zitadel-client, personal access token")
    with StandIn() as at:
        # It leaves out the form-encoding of RFC 6749 section 2.3.1, which Zitadel undoes.
        credentials = [urllib.parse.quote_plus(part) for part in at.client]
        drive(sdk.Zitadel.with_client_credentials(at.url, *credentials), at)
        by_official += judge(at.exchanges(), "zitadel-client, client credentials")
    with StandIn() as at:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as key_file:
            json.dump(at.key_file, key_file)
            key_file.flush()
            drive(sdk.Zitadel.with_private_key(at.url, key_file.name), at)
        by_official += judge(at.exchanges(), "zitadel-client, private key")
        refused(401, "unauthenticated", sdk.Zitadel.with_access_token(at.url, "wrong").projects.list_project_roles,
                models.ProjectServiceListProjectRolesRequest(projectId=at.project))
    assert by_official > 0
    must_fail("ListAuthorizations", {"filters": [{"userId": {"id": "1"}}]})
    must_fail("ListAuthorizations", {"filters": [{}]})
    must_fail("CreateAuthorization", {"userId": 1})
    for path in sys.argv[1:]:
        assert judge(json.loads(Path(path).read_text()), "alchemi") > 0, path


if __name__ == "__main__":
    main()
