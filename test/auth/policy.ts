/*
 * THE POLICY, written by hand: who may do what, and what everybody else is told.
 *
 * Four areas hold the repositories; in each of them there is one that exists (`<area>/app`) and one that does
 * not (`<area>/not`). The grants, as an administrator would give them:
 *
 *   anonymous      pull    public/**
 *   authenticated  pull    shared/**
 *   reader         pull    team/**          pusher, and the group devs   push    team/**
 *   deleter        delete  team/**          owner, and the group owners  admin   team/**
 *   neighbour      admin   other/**         former                       admin   team/**, but he is disabled
 *
 * stranger has no grant of his own, root is an administrator of the server.
 */

export const areas = ['public', 'shared', 'team', 'secret'] as const
export type Area = (typeof areas)[number]

/** What somebody may do in an area. Whoever may push or delete may pull, too. */
export type May = 'nothing' | 'pull' | 'push' | 'delete' | 'everything'

/** What the protocol's actions need. */
export type Need = 'pull' | 'push' | 'delete'

export const suffices: Record<May, readonly Need[]> = {
  nothing: [],
  pull: ['pull'],
  push: ['pull', 'push'],
  delete: ['pull', 'delete'],
  everything: ['pull', 'push', 'delete'],
}

/**
 * What somebody is told who may not do it. It is the same whether the thing is there or not, and the same for a
 * repository that is there and one that is not.
 */
export type Refusal =
  /** 401 and where to log in; `error` is left out, since no token was sent. */
  | 'log in'
  /** 401 and which token it takes; `error="insufficient_scope"`. */
  | 'get a better token'
  /** 401 and which token it takes; `error="invalid_token"`. */
  | 'get a valid token'
  /** 403: the name and the password were right, there is nothing better to send. */
  | 'no'

export interface Policy {
  /** In words. */
  readonly who: string
  readonly may: Readonly<Record<Area, May>>
  readonly refusal: Refusal
  /** Whether `/v2/` welcomes the caller, which is how clients find out that a login is right. */
  readonly base: 'welcome' | 'refused'
  /** Whether the catalog is shown; what it shows is what may be pulled. */
  readonly catalog: 'shown' | 'refused'
  /** What `docker search` finds; undefined: refused. */
  readonly search: readonly Area[] | undefined
  /** Set for a token that mounts from repositories which it may not pull from itself. */
  readonly mounts?: 'from wherever its owner may pull'
  /** Each request is a wrong login, which costs the server a hash: asked a few things only. */
  readonly isWrongLogin?: true
}

const nowhere = { public: 'nothing', shared: 'nothing', team: 'nothing', secret: 'nothing' } as const
const public_ = { ...nowhere, public: 'pull' } as const
const everybody = { ...public_, shared: 'pull' } as const

/** Everybody who can turn up. */
export const actors = {
  // --- nobody in particular
  'nothing sent': {
    who: 'sends no credentials: sees what anonymous may pull, and is asked to log in for everything else',
    may: public_,
    refusal: 'log in',
    base: 'refused',
    catalog: 'refused',
    search: ['public'],
  },
  'empty Basic': {
    who: 'sends an empty name and an empty password, as some clients do for want of better: the same as nothing',
    may: public_,
    refusal: 'log in',
    base: 'refused',
    catalog: 'refused',
    search: ['public'],
  },
  'anonymous token': {
    who: 'got a token without credentials: the catalog shows the public part of the registry',
    may: public_,
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public'],
  },

  // --- users with rights of growing size
  'stranger, token': {
    who: 'is a user without a single grant: has what everybody has who logged in',
    may: everybody,
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared'],
  },
  'stranger, password': {
    who: 'the same, with the password in every request',
    may: everybody,
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared'],
  },
  'reader, token': {
    who: 'may pull from team',
    may: { ...everybody, team: 'pull' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'reader, password': {
    who: 'the same, with the password in every request',
    may: { ...everybody, team: 'pull' },
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'pusher, token': {
    who: 'may push to team: not delete there, nor push elsewhere',
    may: { ...everybody, team: 'push' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'pusher, password': {
    who: 'the same, with the password in every request',
    may: { ...everybody, team: 'push' },
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'member of devs, token': {
    who: 'may push to team by being in a group',
    may: { ...everybody, team: 'push' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'deleter, token': {
    who: 'may delete from team: not push there',
    may: { ...everybody, team: 'delete' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'deleter, password': {
    who: 'the same, with the password in every request',
    may: { ...everybody, team: 'delete' },
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'owner, token': {
    who: 'may do everything in team, and nothing more elsewhere than anybody',
    may: { ...everybody, team: 'everything' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'neighbour, token': {
    who: 'may do everything in other, and therefore nothing in team',
    may: everybody,
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared'],
  },
  'neighbour, password': {
    who: 'the same, with the password in every request',
    may: everybody,
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared'],
  },
  'root, token': {
    who: 'administers the server: may do everything everywhere',
    may: { public: 'everything', shared: 'everything', team: 'everything', secret: 'everything' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team', 'secret'],
  },
  'root, password': {
    who: 'the same, with the password in every request',
    may: { public: 'everything', shared: 'everything', team: 'everything', secret: 'everything' },
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team', 'secret'],
  },

  // --- credentials that are worth less than their owner
  'owner, token for pull alone': {
    who: 'asked for a token with the scope pull: it pulls, and does nothing else',
    may: { ...everybody, team: 'pull' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'refused',
    search: ['public', 'shared', 'team'],
  },
  'owner, token without scope': {
    who: 'has a token that proves who he is (a login check): it does nothing, and shows nothing',
    may: nowhere,
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'refused',
    search: [],
  },
  'root, token for team alone': {
    who: 'may do everything everywhere, and has a token for team: it reads nothing elsewhere, by a mount neither',
    may: { ...nowhere, team: 'everything' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'refused',
    search: ['team'],
  },
  'root, token for team and for mounts': {
    who: 'has a token for team that may also mount from wherever its owner may pull: it is no token for lists or pulls',
    may: { ...nowhere, team: 'everything' },
    mounts: 'from wherever its owner may pull',
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'refused',
    search: ['team'],
  },
  'access token of root for pull from team, as password': {
    who: "a machine's token, narrower than its owner: pulls from team, and what anonymous may pull; what everybody may who logged in is the owner's right, and left out",
    may: { ...public_, team: 'pull' },
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'team'],
  },
  'access token of root for pull from team, exchanged': {
    who: 'the same, exchanged for a bearer token for which all scopes were asked',
    may: { ...public_, team: 'pull' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'team'],
  },
  'access token of root for pull from team, as the refresh token it was given': {
    who: 'asked for a refresh token with it: what it got may do what it may, in the place of the password',
    may: { ...public_, team: 'pull' },
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'team'],
  },
  'access token of root for pull from team, refreshed': {
    who: 'asked for a refresh token with it, and exchanged that for a bearer token for which all scopes were asked',
    may: { ...public_, team: 'pull' },
    refusal: 'get a better token',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'team'],
  },
  'refresh token of owner': {
    who: 'has a refresh token that was got with a password: it is worth what the password is',
    may: { ...everybody, team: 'everything' },
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared', 'team'],
  },
  'access token of stranger for everything': {
    who: 'a token that claims more than its owner may do: it is worth what the owner is',
    may: everybody,
    refusal: 'no',
    base: 'welcome',
    catalog: 'shown',
    search: ['public', 'shared'],
  },

  // --- credentials that are worth nothing: not even what is public, so that nobody believes to be logged in
  'former, old token': {
    who: 'got a token and was disabled then',
    may: nowhere,
    refusal: 'get a valid token',
    base: 'refused',
    catalog: 'refused',
    search: undefined,
  },
  'former, right password': {
    who: 'is disabled and still knows the password',
    may: nowhere,
    refusal: 'log in',
    base: 'refused',
    catalog: 'refused',
    search: undefined,
    isWrongLogin: true,
  },
  'former, access token': {
    who: 'is disabled and has an access token from before',
    may: nowhere,
    refusal: 'log in',
    base: 'refused',
    catalog: 'refused',
    search: undefined,
    isWrongLogin: true,
  },
  'owner, wrong password': {
    who: 'mistyped it: is told so, never taken for anonymous',
    may: nowhere,
    refusal: 'log in',
    base: 'refused',
    catalog: 'refused',
    search: undefined,
    isWrongLogin: true,
  },
  'owner, expired access token': {
    who: 'has an access token whose time is over',
    may: nowhere,
    refusal: 'log in',
    base: 'refused',
    catalog: 'refused',
    search: undefined,
    isWrongLogin: true,
  },
  'root, token of another server': {
    who: 'has a token from another server: signed by a key that is not ours',
    may: nowhere,
    refusal: 'get a valid token',
    base: 'refused',
    catalog: 'refused',
    search: undefined,
  },
  'root, token of another service': {
    who: 'has a token for another service that our own key has signed',
    may: nowhere,
    refusal: 'get a valid token',
    base: 'refused',
    catalog: 'refused',
    search: undefined,
  },
  'root, expired token': {
    who: 'has a token whose time is over',
    may: nowhere,
    refusal: 'get a valid token',
    base: 'refused',
    catalog: 'refused',
    search: undefined,
  },
} as const satisfies Record<string, Policy>

export type ActorName = keyof typeof actors

/** One kind of request for one kind of thing. */
export interface Row {
  readonly needs: Need
  /** What somebody who may do it is answered in the repository that exists. */
  readonly there: string
  /** And in the one that does not; undefined where the request makes no sense there. */
  readonly missing: string | undefined
  /** The answer, in place of the other one, to somebody who may also pull from the repository that it mounts from. */
  readonly withSource?: string
  /** The answer, in place of the other ones, to somebody who may do everything there: he administers it. */
  readonly withAdmin?: string
  /** Asked of everybody and in all areas; the other rows in team and in secret, which tell rights apart. */
  readonly everywhere?: true
}

/**
 * Every repository route with every kind of object. `foreign` things exist, in a repository of another area;
 * `v1` is an immutable tag.
 */
export const rows = {
  // --- reading a manifest
  'GET a manifest by tag': { needs: 'pull', there: '200', missing: '404 NAME_UNKNOWN', everywhere: true },
  'HEAD a manifest by tag': { needs: 'pull', there: '200', missing: '404' },
  'GET a manifest by digest': { needs: 'pull', there: '200', missing: '404 NAME_UNKNOWN' },
  'GET a manifest by an immutable tag': { needs: 'pull', there: '200', missing: '404 NAME_UNKNOWN' },
  'GET a manifest by a missing tag': {
    needs: 'pull',
    there: '404 MANIFEST_UNKNOWN',
    missing: '404 NAME_UNKNOWN',
  },
  'GET a manifest by a missing digest': {
    needs: 'pull',
    there: '404 MANIFEST_UNKNOWN',
    missing: '404 NAME_UNKNOWN',
  },
  'GET a foreign manifest': { needs: 'pull', there: '404 MANIFEST_UNKNOWN', missing: '404 NAME_UNKNOWN' },

  // --- reading a blob
  'GET a blob': { needs: 'pull', there: '200', missing: '404 BLOB_UNKNOWN', everywhere: true },
  'HEAD a blob': { needs: 'pull', there: '200', missing: '404' },
  'GET a part of a blob': { needs: 'pull', there: '206', missing: '404 BLOB_UNKNOWN' },
  'GET a missing blob': { needs: 'pull', there: '404 BLOB_UNKNOWN', missing: '404 BLOB_UNKNOWN' },
  'GET a foreign blob': { needs: 'pull', there: '404 BLOB_UNKNOWN', missing: '404 BLOB_UNKNOWN' },
  'HEAD a foreign blob': { needs: 'pull', there: '404', missing: '404' },
  'GET a part of a foreign blob': { needs: 'pull', there: '404 BLOB_UNKNOWN', missing: '404 BLOB_UNKNOWN' },
  'GET a foreign blob with its ETag': {
    needs: 'pull',
    there: '404 BLOB_UNKNOWN',
    missing: '404 BLOB_UNKNOWN',
  },
  'GET a blob by a bad digest': { needs: 'pull', there: '400 DIGEST_INVALID', missing: '400 DIGEST_INVALID' },

  // --- reading lists
  'GET the tags': { needs: 'pull', there: '200', missing: '404 NAME_UNKNOWN', everywhere: true },
  'GET referrers': { needs: 'pull', there: '200', missing: '200' },
  'GET referrers of a foreign manifest': { needs: 'pull', there: '200', missing: '200' },

  // --- uploading: a session belongs to its repository and to whoever began it
  'POST an upload': { needs: 'push', there: '202', missing: '202', everywhere: true },
  'POST a whole blob': { needs: 'push', there: '201', missing: '201' },
  'POST a mount of a foreign blob': { needs: 'push', there: '202', missing: '202', withSource: '201' },
  'POST a mount of a foreign blob from wherever': {
    needs: 'push',
    there: '202',
    missing: '202',
    withSource: '201',
  },
  'POST a mount of a missing blob': { needs: 'push', there: '202', missing: '202' },
  'GET an upload': { needs: 'push', there: '204', missing: '204' },
  'PATCH an upload': { needs: 'push', there: '202', missing: '202' },
  'PUT an upload': { needs: 'push', there: '201', missing: '201' },
  'DELETE an upload': { needs: 'push', there: '204', missing: '204' },
  "GET somebody else's upload": {
    needs: 'push',
    there: '404 BLOB_UPLOAD_UNKNOWN',
    missing: '404 BLOB_UPLOAD_UNKNOWN',
  },
  "PATCH somebody else's upload": {
    needs: 'push',
    there: '404 BLOB_UPLOAD_UNKNOWN',
    missing: '404 BLOB_UPLOAD_UNKNOWN',
  },
  "PUT somebody else's upload": {
    needs: 'push',
    there: '404 BLOB_UPLOAD_UNKNOWN',
    missing: '404 BLOB_UPLOAD_UNKNOWN',
  },
  "DELETE somebody else's upload": {
    needs: 'push',
    there: '404 BLOB_UPLOAD_UNKNOWN',
    missing: '404 BLOB_UPLOAD_UNKNOWN',
    withAdmin: '204',
  },
  'GET a missing upload': {
    needs: 'push',
    there: '404 BLOB_UPLOAD_UNKNOWN',
    missing: '404 BLOB_UPLOAD_UNKNOWN',
  },

  // --- writing manifests
  'PUT a manifest by a new tag': { needs: 'push', there: '201', missing: undefined, everywhere: true },
  'PUT a manifest into a new repository': { needs: 'push', there: '201', missing: undefined },
  'PUT another manifest by a tag that is there': { needs: 'push', there: '201', missing: undefined },
  'PUT a manifest by digest': { needs: 'push', there: '201', missing: undefined },
  'PUT a manifest that needs a foreign blob': {
    needs: 'push',
    there: '400 MANIFEST_BLOB_UNKNOWN',
    missing: '400 MANIFEST_BLOB_UNKNOWN',
  },
  'PUT the same manifest by an immutable tag': { needs: 'push', there: '201', missing: undefined },
  'PUT another manifest by an immutable tag': { needs: 'push', there: '403 DENIED', missing: undefined },
  'PUT a manifest by digest with an immutable tag among others': {
    needs: 'push',
    there: '403 DENIED',
    missing: undefined,
  },

  // --- deleting
  'DELETE a tag': { needs: 'delete', there: '202', missing: '404 NAME_UNKNOWN', everywhere: true },
  'DELETE a missing tag': { needs: 'delete', there: '404 MANIFEST_UNKNOWN', missing: '404 NAME_UNKNOWN' },
  'DELETE a manifest': { needs: 'delete', there: '202', missing: '404 NAME_UNKNOWN' },
  'DELETE a foreign manifest': {
    needs: 'delete',
    there: '404 MANIFEST_UNKNOWN',
    missing: '404 NAME_UNKNOWN',
  },
  'DELETE an immutable tag': { needs: 'delete', there: '403 DENIED', missing: '404 NAME_UNKNOWN' },
  'DELETE a manifest with an immutable tag': {
    needs: 'delete',
    there: '403 DENIED',
    missing: '404 NAME_UNKNOWN',
  },
  'DELETE a blob': { needs: 'delete', there: '202', missing: '404 BLOB_UNKNOWN' },
  'DELETE a blob in use': { needs: 'delete', there: '405 UNSUPPORTED', missing: '404 BLOB_UNKNOWN' },
  'DELETE a foreign blob': { needs: 'delete', there: '404 BLOB_UNKNOWN', missing: '404 BLOB_UNKNOWN' },
} as const satisfies Record<string, Row>

export type RowName = keyof typeof rows

/** What nobody needs a right for, and what it answers to everybody alike, good credentials or bad. */
export const open = {
  'GET /healthz': '200',
  'GET /readyz': '200',
  'GET /metrics': '200',
  'GET /v1/_ping': '200',
  'GET /v1/elsewhere': '404 NOT_FOUND',
  'GET /': '404 NOT_FOUND',
  'GET /v2/team/app/nothing': '404 NOT_FOUND',
  'GET /v2/secret/app/nothing': '404 NOT_FOUND',
  'POST /v2/team/app/manifests/1': '405 UNSUPPORTED',
  'POST /v2/secret/app/manifests/1': '405 UNSUPPORTED',
  'POST /v2/secret/not/manifests/1': '405 UNSUPPORTED',
  'GET /v2/Team/App/tags/list': '400 NAME_INVALID',
  'GET /v2/secret/app%2Fother/tags/list': '400 NAME_INVALID',
} as const

/** Scopes that go into a challenge (protocol AU-05). */
export const scopeFor: Record<Need, (repository: string) => string> = {
  pull: (repository) => `repository:${repository}:pull`,
  push: (repository) => `repository:${repository}:pull,push`,
  delete: (repository) => `repository:${repository}:pull,delete`,
}
