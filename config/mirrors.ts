import { z } from 'zod'
import { readHost, readHostPattern, readRegistryUrl } from './addresses.js'
import {
  environmentName,
  oneLine,
  platform,
  readMirrorName,
  readRepository,
  readSchedule,
  readTagPattern,
} from './mirror-values.js'
import {
  choice,
  duration,
  flag,
  isHostName,
  listOf,
  networks,
  path,
  patterns,
  readJson,
  size,
  word,
} from './values.js'

/** What `mirror sync` fetches of one repository. */
export interface MirrorImage {
  /** The upstream's name. */
  readonly repository: string
  /** Tags in which `*` stands for any text; never empty. */
  readonly tags: readonly string[]
  /** As `os/arch` or `os/arch/variant`; empty for all there are. */
  readonly platforms: readonly string[]
}

/** What is fetched ahead, and when. */
export interface MirrorSync {
  /** A cron expression of 5 or 6 fields. */
  readonly schedule: string | undefined
  readonly images: readonly MirrorImage[]
}

/** One upstream registry, as it is configured. Plain data: it is sent to other processes. Hosts are in lower case. */
export interface MirrorConfig {
  /** Path components that begin the names of its repositories here. */
  readonly name: string
  /** Without a slash at the end, never empty; the first that answers counts. */
  readonly urls: readonly string[]
  /** The values of `?ns=` that mean this mirror: hosts, some with a port. */
  readonly namespaces: readonly string[]
  readonly username: string | undefined
  /** From the configuration or an environment variable; never shown. */
  readonly password: string | undefined
  /** Absolute path; the file is read when the password is needed. */
  readonly passwordFile: string | undefined
  /** Absolute path of a Docker `config.json`; stands in place of username and password. */
  readonly dockerConfig: string | undefined
  /** Patterns over the upstream's names; what `deny` matches is not served even where `allow` matches. */
  readonly allow: readonly string[]
  readonly deny: readonly string[]
  /** Milliseconds for which a tag counts as current. */
  readonly freshness: number
  /** Bytes; undefined for no bound of its own. */
  readonly budget: number | undefined
  /** Whether names without a registry fall to this mirror; true for one mirror at most. */
  readonly bareNames: boolean
  readonly onUpstreamDeleted: 'keep' | 'drop'
  /** Hosts, some with a port, that may hand out tokens, beside those of `urls`. */
  readonly realms: readonly string[]
  /** Hosts, some with a port, or `*.` names, that blobs may be redirected to, beside those of `urls`. */
  readonly redirects: readonly string[]
  /** Addresses and networks of loopback and private addresses that its hosts may resolve to. */
  readonly addresses: readonly string[]
  /** Absolute path of a PEM file. */
  readonly ca: string | undefined
  /** Whether everybody may read what the credentials open. */
  readonly public: boolean
  /** Milliseconds. */
  readonly connectTimeout: number
  /** Milliseconds. */
  readonly idleTimeout: number
  readonly sync: MirrorSync | undefined
}

const hostHint = 'write hosts such as auth.example.com or registry.corp:5000'
const passwordFileHint = 'name a file with the password on its only line'
const imageHint = 'write a list of images, each with repository and tags'

const image = z.strictObject(
  {
    repository: word('write a repository of the upstream, such as library/nginx', readRepository),
    tags: listOf('write tags such as 1.27, or patterns such as 1.*', readTagPattern).refine(
      (tags) => tags.length > 0,
      { error: 'write at least one tag, or * for all' },
    ),
    platforms: listOf('write platforms such as linux/amd64 or linux/arm/v7', platform).prefault([]),
  },
  { error: imageHint },
)

const sync = z.strictObject(
  {
    schedule: word(
      'write a cron expression of 5 or 6 fields that comes true some day, such as 0 3 * * *',
      readSchedule,
    ).optional(),
    images: z
      .array(image, { error: imageHint })
      .min(1, { error: imageHint })
      .max(1000, { error: 'write 1000 images at most' }),
  },
  { error: 'write schedule and images below it' },
)

/** The settings of one mirror: how each is written, its default, and the words that describe it. */
export const mirrorFields = {
  name: word('write lower-case path components such as docker.io or corp/cache', readMirrorName).describe(
    'The path below which its repositories are found here, and the name of the upstream registry, such as docker.io.',
  ),
  url: listOf(
    'write an address such as https://registry.example.com, without a user, a query or /v2',
    readRegistryUrl,
  )
    .refine((urls) => urls.length > 0, { error: 'write at least one address' })
    .optional()
    .describe(
      'The address of the upstream, or several that are tried in turn; unset, it is https:// and the name, and ' +
        'https://registry-1.docker.io for docker.io.',
    ),
  namespaces: listOf(hostHint, readHost)
    .optional()
    .describe(
      'The registries that containerd may name in ?ns= to mean this mirror; unset, it is the name, and for docker.io ' +
        'index.docker.io and registry-1.docker.io too.',
    ),
  username: oneLine('write the name of a user, in quotes when it is a number, and without a colon', /:/)
    .optional()
    .describe('The user to log in as at the upstream; unset, nobody logs in.'),
  password: oneLine('write a password of up to 1024 bytes on one line, in quotes when it is a number')
    .optional()
    .describe('The password of the user; better kept out of this file by one of the next two.'),
  passwordFile: path(passwordFileHint)
    .optional()
    .describe('A file with the password of the user, which is read anew each time that it is needed.'),
  passwordVariable: word('write the name of an environment variable', environmentName)
    .optional()
    .describe('The name of an environment variable that holds the password of the user.'),
  dockerConfig: path('name a config.json of Docker')
    .optional()
    .describe(
      'A config.json of Docker with the credentials for the host of the url, in place of username and password.',
    ),
  allow: patterns()
    .prefault(['**'])
    .describe('The repositories of the upstream, by its own names, that may be fetched.'),
  deny: patterns()
    .prefault([])
    .describe(
      'The repositories of the upstream, by its own names, that may not be fetched although allowed.',
    ),
  freshness: duration('0s', '30d')
    .prefault('5m')
    .describe('How long a tag counts as current before the upstream is asked about it again.'),
  budget: size('1MiB', '1024TiB')
    .optional()
    .describe(
      'How many bytes the mirror may hold; what was not pulled for the longest time makes room. Unset, the disk alone ' +
        'sets the bound.',
    ),
  bareNames: flag()
    .prefault(false)
    .describe(
      'Whether names without a registry fall to this mirror when there is no such repository here, as the ' +
        'registry-mirrors of Docker need it; for one mirror at most.',
    ),
  onUpstreamDeleted: choice(['keep', 'drop'], 'write keep or drop')
    .prefault('keep')
    .describe('Whether an image that the upstream has deleted is still served: keep or drop.'),
  realms: listOf(hostHint, readHost)
    .prefault([])
    .describe('Further hosts that may hand out tokens for the upstream, and so are sent its credentials.'),
  redirects: listOf(
    'write hosts such as cdn.example.com, or *.example.com for all names below it',
    readHostPattern,
  )
    .prefault([])
    .describe('Further hosts that blobs may be fetched from, *.example.com for all names below it.'),
  addresses: networks()
    .prefault([])
    .describe('Loopback and private addresses or networks that the hosts of the upstream may resolve to.'),
  ca: path('name a PEM file with certificates')
    .optional()
    .describe('A PEM file with certificates of authorities that are trusted for the upstream.'),
  public: flag()
    .prefault(false)
    .describe('Whether everybody who reaches this server may read what the credentials open.'),
  connectTimeout: duration('100ms', '1m')
    .prefault('3s')
    .describe('How long a connection to the upstream may take to come about.'),
  idleTimeout: duration('1s', '1h')
    .prefault('30s')
    .describe('How long the upstream may stand still in an answer before it is given up.'),
  sync: sync
    .optional()
    .describe(
      'What is to be fetched ahead, by the schedule and by the command mirror sync: images, each with repository, tags ' +
        'and platforms, and, unless the command alone is to do it, schedule, a cron expression in local time.',
    ),
}

const mirror = z.strictObject(mirrorFields, { error: 'write a name and the settings of a mirror below it' })

/** The settings of a mirror, each of which may be missing. */
export const mirrorDraft = z.object(mirrorFields).partial()

/** The settings of a mirror that could be understood. */
export type MirrorDraft = z.output<typeof mirrorDraft>

/** The settings within `sync`, and within one of its images. */
export const syncNames = Object.keys(sync.shape)
export const imageNames = Object.keys(image.shape)

/** A mirror with all that is not written filled in from its name. */
function complete(fields: z.output<typeof mirror>): MirrorConfig {
  const { name, url, namespaces, username, password, passwordFile, dockerConfig, ...rest } = fields
  const { passwordVariable: _, budget, ca, sync, ...others } = rest
  const credentials = { username, password, passwordFile, dockerConfig }
  return {
    name,
    urls: url ?? [defaultUrl(name) ?? ''],
    namespaces: namespaces ?? defaultNamespaces(name),
    ...credentials,
    ...others,
    budget,
    ca,
    sync: sync && { schedule: sync.schedule, images: sync.images },
  }
}

/** The address that a name stands for; undefined when it is not the name of a host. */
export function defaultUrl(name: string): string | undefined {
  if (name === 'docker.io') return 'https://registry-1.docker.io'
  return isHostName(name) ? `https://${name}` : undefined
}

/** The registries that a name stands for. */
export function defaultNamespaces(name: string): readonly string[] {
  return name === 'docker.io' ? ['docker.io', 'index.docker.io', 'registry-1.docker.io'] : [name]
}

/** A list of mirrors, or the JSON of one. What mirrors demand of each other is not judged here. */
export function mirrors() {
  const list = z
    .array(mirror.transform(complete), { error: 'write a list of mirrors, or one as JSON in the variable' })
    .max(100, { error: 'write 100 mirrors at most' })
  return z.preprocess(readJson, list)
}
