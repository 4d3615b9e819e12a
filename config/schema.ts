import { availableParallelism } from 'node:os'
import { z } from 'zod'
import { readException, readProxy } from './addresses.js'
import { limits, timeouts } from './limits.js'
import { mirrorFields, mirrors } from './mirrors.js'
import { retention } from './retention.js'
import { snapshots, verify } from './safety.js'
import {
  choice,
  duration,
  flag,
  listOf,
  networks,
  path,
  patterns,
  quotas,
  readListen,
  readUrl,
  readWhole,
  size,
  tagPatterns,
  word,
} from './values.js'

const proxyHint = 'write the address of a proxy, such as http://proxy.example.com:3128'

/** The two files of TLS, as absolute paths to PEM files. */
export interface TlsFiles {
  readonly certificate: string
  readonly key: string
}

const tls = z
  .strictObject({
    /** Absolute path. */
    certificate: path('name a PEM file')
      .optional()
      .describe(
        'The PEM file with the certificate and its chain, from the current directory; with it and tls.key the ' +
          'server speaks HTTPS, and takes up the files anew when they change.',
      ),
    /** Absolute path. */
    key: path('name a PEM file')
      .optional()
      .describe('The PEM file with the private key of tls.certificate, without a passphrase.'),
  })
  .prefault({})
  // One value with both files or none: no caller needs to ask for each of them.
  .transform(({ certificate, key }): TlsFiles | undefined =>
    certificate !== undefined && key !== undefined ? { certificate, key } : undefined,
  )

/**
 * Every setting: how it is written, what it resolves to, its default (as a user would write it) and the one
 * sentence that describes it in the help and in the example file. All faults' messages say what to write.
 */
export const schema = z.strictObject({
  listen: word(
    'write an address and a port, such as 127.0.0.1:5000, [::1]:5000, or :5000 for all addresses',
    readListen,
  )
    .prefault('127.0.0.1:5000')
    .describe(
      'The address and port to listen on; :5000 means all addresses, 5000 alone means this machine only, and ' +
        'port 0 a free port.',
    ),

  /** Absolute path. */
  data: path('name a folder such as ./data')
    .prefault('./data')
    .describe(
      'The folder that holds everything the registry stores, from the current directory; it is made when it is ' +
        'not there.',
    ),

  auth: choice(['none', 'token'], 'write token, or none to let everybody in')
    .optional()
    .describe(
      'Who may do what: token asks for users and grants, none lets everybody who can reach the server push, pull ' +
        'and delete. Unset, it is none while nothing says that others reach the server (an address of this machine alone, ' +
        'no publicUrl, no trustedProxies, no users and grants), and token otherwise.',
    ),

  /** Without a slash at its end. */
  publicUrl: word('write the address that clients use, such as https://registry.example.com', readUrl)
    .optional()
    .describe(
      'The address under which clients reach the server, for logins behind a proxy; unset, it is the one that ' +
        'each client used.',
    ),

  trustedProxies: networks()
    .prefault([])
    .describe(
      'Addresses or networks of proxies whose X-Forwarded-For, -Proto and -Host headers are believed; all others ' +
        'are ignored.',
    ),

  /** A number of processes; `auto` has been resolved. */
  workers: word('write auto or a number from 1 to 64', (text) =>
    text === 'auto' ? Math.min(4, availableParallelism()) : readWhole(text, 1, 64),
  )
    .prefault('auto')
    .describe(
      'How many processes serve requests, from 1 to 64; auto is the number of processor cores, but at most 4.',
    ),

  tls,

  admin: z
    .strictObject({
      /** Absolute path. */
      passwordFile: path('name a file that holds a password')
        .optional()
        .describe('A file with the password of the user admin, who is made at the start when there is none.'),
    })
    .prefault({}),

  tokens: z
    .strictObject({
      /** Milliseconds. */
      expireAfter: duration('60s', '1h')
        .prefault('5m')
        .describe('How long a token lasts that a client got for its name and password.'),
      service: word('write a name of letters, digits, dots, colons and dashes', (text) =>
        /^[\w.:-]{1,128}$/.test(text) ? text : undefined,
      )
        .optional()
        .describe(
          'The name that tokens are for; unset, it is the host of publicUrl, or else boathouse. Tokens of another ' +
            'service are refused.',
        ),
      /** Absolute path. */
      keyFile: path('name a PEM file with an Ed25519 private key')
        .optional()
        .describe(
          'A PEM file with the Ed25519 key that signs tokens, taken up anew when it changes; unset, a key is made in ' +
            'the data folder at the first start.',
        ),
      refresh: flag()
        .prefault('false')
        .describe(
          'Whether clients that ask for it get a refresh token, which lasts 90 days; a user has at most 100. ' +
            'Docker then keeps it in the place of the password, and other programs cannot use its logins.',
        ),
    })
    .prefault({}),

  tags: z
    .strictObject({
      immutable: tagPatterns()
        .prefault([])
        .describe(
          'Tags that nobody can move or delete once they are pushed: a repository pattern, a colon, and a tag in ' +
            'which * stands for any text, such as team/**:v*.',
        ),
      /** Milliseconds; unset, it is `gc.grace`: see {@link undoTime}. */
      undo: duration('0s', '365d')
        .optional()
        .describe(
          'How long a tag that was moved or deleted, and a manifest that was deleted, can be restored at least; unset, ' +
            'as long as gc.grace.',
        ),
      /** Milliseconds. */
      history: duration('1h', '3650d')
        .prefault('90d')
        .describe('How long changes of tags are remembered, about a thousand of each tag at the most.'),
    })
    .prefault({}),

  log: z
    .strictObject({
      level: choice(
        ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'],
        'write fatal, error, warn, info, debug, trace or silent',
      )
        .prefault('info')
        .describe(
          'The least serious messages to log: fatal, error, warn, info, debug, trace, or silent for none at all.',
        ),
      format: choice(['auto', 'json', 'pretty'], 'write auto, json or pretty')
        .prefault('auto')
        .describe(
          'How log lines look: json for programs, pretty for people, auto for pretty on a terminal and json ' +
            'elsewhere.',
        ),
    })
    .prefault({}),

  uploads: z
    .strictObject({
      /** Milliseconds; may exceed what a single timer can wait. */
      expireAfter: duration('1s', '365d')
        .prefault('24h')
        .describe('How long an upload may rest between two requests before it is dropped with its bytes.'),
      maxPerRepository: word('write a number from 1 to 1000000', (text) => readWhole(text, 1, 1_000_000))
        .prefault(1000)
        .describe('How many unfinished uploads a repository may have at a time.'),
      maxPerUser: word('write a number from 1 to 1000000', (text) => readWhole(text, 1, 1_000_000))
        .prefault(500)
        .describe(
          'How many unfinished uploads a user may have at a time, in all repositories together; who did not log in ' +
            'counts by address.',
        ),
      /** Bytes. */
      maxBlobSize: size('1MiB', '1024TiB')
        .prefault('1TiB')
        .describe('The largest layer or other blob to accept.'),
    })
    .prefault({}),

  gc: z
    .strictObject({
      /** Milliseconds. */
      interval: duration('10ms', '24d')
        .prefault('15m')
        .describe('How long garbage collection rests before it looks again for what nobody needs any more.'),
      /** Milliseconds. */
      grace: duration('10ms', '365d')
        .prefault('24h')
        .describe(
          'How long a layer or other blob that no manifest names stays at least after somebody pushed, mounted, ' +
            'pulled or looked for it.',
        ),
      /** Milliseconds. */
      untagged: duration('10ms', '3650d')
        .optional()
        .describe(
          'How long manifests that no tag leads to stay after they were last pushed, pulled or untagged; unset, ' +
            'they stay for ever.',
        ),
    })
    .prefault({}),

  retention,

  verify,

  snapshots,

  manifests: z
    .strictObject({
      sparse: patterns()
        .prefault([])
        .describe(
          'The repositories in which a manifest may name parts that are not there, as mirrors of some platforms ' +
            'need it: team/app is one, team/* those directly below team, team/** all below team, ** all.',
        ),
    })
    .prefault({}),

  mirrors: mirrors()
    .prefault([])
    .describe(
      'The upstream registries whose images are fetched when clients ask for them, and kept: a list of mirrors, each ' +
        'with the settings of a mirror; in the variable as JSON.',
    ),

  proxy: z
    .strictObject({
      /** May hold a user and a password: never shown. */
      http: word(proxyHint, readProxy)
        .optional()
        .describe(
          'The HTTP proxy through which upstreams with http are reached; unset, it is the one of HTTP_PROXY or ' +
            'http_proxy in the environment, if any.',
        ),
      /** May hold a user and a password: never shown. */
      https: word(proxyHint, readProxy)
        .optional()
        .describe(
          'The HTTP proxy through which upstreams with https are reached; unset, it is the one of HTTPS_PROXY or ' +
            'https_proxy in the environment, if any.',
        ),
      exceptions: listOf(
        'write hosts, addresses or networks such as registry.corp, .corp, 10.0.0.0/8, or * for all',
        readException,
        /[\s,]+/,
      )
        .prefault([])
        .describe(
          'Hosts, addresses and networks that are reached without a proxy, .corp with all names below it, * for all; ' +
            'unset, they are those of NO_PROXY or no_proxy in the environment.',
        ),
    })
    .prefault({}),

  disk: z
    .strictObject({
      /** Bytes. */
      floor: size('0B', '1024TiB')
        .prefault('256MiB')
        .describe(
          'The space that stays free on the disk of the data folder: where less would be left, pushes are refused, and ' +
            'mirrors give back what was not pulled for the longest time; what has no room then is refused.',
        ),
      /** Bytes. */
      reserve: size('0B', '1TiB')
        .prefault('32MiB')
        .describe(
          'The size of a file in the data folder that is given up bit by bit when the disk is full, so that deletes and ' +
            'garbage collection go on; 0B for none.',
        ),
    })
    .prefault({}),

  quotas: quotas(100)
    .prefault([])
    .describe(
      'How many bytes repositories may hold together: a repository pattern, an equals sign and a size, such as ' +
        'team/**=20GiB; pushes that do not fit are refused.',
    ),

  limits,

  timeouts,
})

type DeepReadonly<T> = T extends readonly (infer Item)[]
  ? readonly DeepReadonly<Item>[]
  : T extends object
    ? { readonly [Key in keyof T]: DeepReadonly<T[Key]> }
    : T

/**
 * The resolved configuration, at the paths of the YAML file: durations in milliseconds, sizes in bytes, paths
 * absolute, `workers` a number, `tls` either both files or undefined.
 */
export type Config = DeepReadonly<z.output<typeof schema>>

/** One setting, for the loader and for the help. */
export interface Setting {
  /** Its path in the YAML file, such as `uploads.expireAfter`. */
  readonly path: string
  /** Its environment variable, such as `BOATHOUSE_UPLOADS_EXPIRE_AFTER`. */
  readonly variable: string
  /** One or two sentences, the same as in the example file. */
  readonly description: string
  /** The default as it would be written; undefined when the setting has none. */
  readonly fallback: string | undefined
  /** Parses one written value. */
  readonly schema: z.ZodType
}

/** The settings of a section of the schema, or undefined when it is a setting itself. */
export function sectionOf(part: z.core.$ZodType): Readonly<Record<string, z.ZodType>> | undefined {
  if (part instanceof z.ZodObject) return part.shape
  if (part instanceof z.ZodPrefault) return sectionOf(part.def.innerType)
  if (part instanceof z.ZodPipe) return sectionOf(part.def.in)
  return undefined
}

function variableOf(path: string): string {
  return `BOATHOUSE_${path.replaceAll('.', '_').replace(/[A-Z]/g, '_$&').toUpperCase()}`
}

function fallbackOf(part: z.ZodType): string | undefined {
  if (part instanceof z.ZodPipe && part.def.in instanceof z.ZodPrefault) return fallbackOf(part.def.in)
  if (!(part instanceof z.ZodPrefault)) return undefined
  const value: unknown = part.def.defaultValue
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

function listSettings(shape: Readonly<Record<string, z.ZodType>>, prefix: string): readonly Setting[] {
  return Object.entries(shape).flatMap(([name, part]) => {
    const path = `${prefix}${name}`
    const section = sectionOf(part)
    if (section !== undefined) return listSettings(section, `${path}.`)
    const description = part.description ?? ''
    return { path, variable: variableOf(path), description, fallback: fallbackOf(part), schema: part }
  })
}

/** Every setting, in the order of the schema. */
export const settings: readonly Setting[] = listSettings(schema.shape, '')

/** Every setting of a mirror by its name there, in the order of the schema; they have no variables. */
export const mirrorSettings: readonly Omit<Setting, 'variable'>[] = Object.entries(mirrorFields).map(
  ([path, part]) => ({ path, description: part.description ?? '', fallback: fallbackOf(part), schema: part }),
)

function freeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) Object.values(Object.freeze(value)).forEach(freeze)
  return value
}

/**
 * The configuration that these written values make, deeply frozen; what is not written takes its default.
 * Throws a ZodError on a value that its setting would refuse.
 */
export function resolveConfig(written: Readonly<Record<string, unknown>>): Config {
  return freeze(schema.parse(written))
}

/** What a server runs with when nothing is configured. */
export const defaults: Config = resolveConfig({})
