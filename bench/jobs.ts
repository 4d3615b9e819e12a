/** Where a job aims: always loopback. */
export interface Target {
  readonly host: string
  readonly port: number
  /** The Authorization header of every request, where the server asks for one. */
  readonly authorization?: string
  /** The loopback address to come from; the system's choice when absent. */
  readonly from?: string
}

/** Pushes blobs as the Docker engine does: POST, one streamed PATCH, an empty PUT, each on its own connection. */
export interface PushJob {
  readonly kind: 'push'
  readonly target: Target
  readonly repository: string
  /** How many blobs are under way at once. */
  readonly parallel: number
  /** How many blobs in all; each has content of its own. */
  readonly blobs: number
  /** Size of each blob in bytes, a multiple of 1 MiB. */
  readonly size: number
}

/** Pulls blobs over kept-alive connections. */
export interface PullJob {
  readonly kind: 'pull'
  readonly target: Target
  /** Paths handed out to the connections in turn. */
  readonly paths: readonly string[]
  readonly connections: number
  /** Stops after this many answers in all … */
  readonly requests?: number
  /** … or after this many seconds, cutting what is under way. */
  readonly seconds?: number
}

/** Pushes whole small images, each of them new, as containerd does (HEAD, POST, PUT; then the manifest). */
export interface ImagesJob {
  readonly kind: 'images'
  readonly target: Target
  readonly clients: number
  readonly seconds: number
}

/** Pushes one image that the reading rows pull from. */
export interface SeedJob {
  readonly kind: 'seed'
  readonly target: Target
  readonly repository: string
  readonly tag: string
  /** Sizes of the layers in bytes. */
  readonly layers: readonly number[]
}

/** Sets many tags on one manifest, several in each request where the server can. */
export interface TagsJob {
  readonly kind: 'tags'
  readonly target: Target
  readonly repository: string
  /** The tag of a manifest that is there already. */
  readonly source: string
  readonly count: number
  readonly perRequest: number
}

/** Asks for pages of a tag list and records how long each takes. */
export interface PagesJob {
  readonly kind: 'pages'
  readonly target: Target
  readonly repository: string
  /** How many tags the repository has; pages start at random places among them. */
  readonly tags: number
  readonly pageSize: number
  readonly connections: number
  readonly requests: number
  /** Stops early after this many seconds. */
  readonly seconds: number
}

/**
 * Pulls of one image at moments laid down beforehand, whether earlier ones have ended or not, as clients that know
 * nothing of each other do: so a server that stalls cannot spare itself the requests that would have shown it.
 */
export interface VisitsJob {
  readonly kind: 'visits'
  readonly target: Target
  /** Clients take turns in coming from these loopback addresses. */
  readonly from: readonly string[]
  /** What one pull asks for, one after the other. */
  readonly paths: readonly string[]
  readonly clients: number
  /** Pulls in a second, of all clients together. */
  readonly perSecond: number
  readonly seconds: number
}

/** Wrong logins at a steady rate: every second one for a user who is there. */
export interface FloodJob {
  readonly kind: 'flood'
  readonly target: Target
  /** What is asked for with wrong credentials, in turn. */
  readonly paths: readonly string[]
  /** A user who is there. */
  readonly user: string
  readonly connections: number
  readonly perSecond: number
  readonly seconds: number
}

/**
 * Pushes of whole small images at moments laid down beforehand, as {@link VisitsJob} does with pulls. It ends early when
 * it is sent SIGTERM.
 */
export interface SteadyJob {
  readonly kind: 'steady'
  readonly target: Target
  readonly clients: number
  /** Images in a second, of all clients together. */
  readonly perSecond: number
  readonly seconds: number
}

/** Asks for paths in turn and records how long each answer takes. */
export interface AsksJob {
  readonly kind: 'asks'
  readonly target: Target
  readonly method: 'GET' | 'HEAD'
  readonly paths: readonly string[]
  readonly headers: Readonly<Record<string, string>>
  readonly connections: number
  readonly requests: number
  /** Stops early after this many seconds. */
  readonly seconds: number
}

export type Job =
  | PushJob
  | PullJob
  | ImagesJob
  | SeedJob
  | TagsJob
  | PagesJob
  | VisitsJob
  | FloodJob
  | SteadyJob
  | AsksJob

/** When something ended, in milliseconds since 1970, and how many milliseconds it took. */
export interface Moment {
  readonly end: number
  readonly milliseconds: number
}

/** What a job did in its timed section. */
export interface JobResult {
  /** Length of the timed section in seconds. */
  readonly seconds: number
  /** Finished units: blobs, answers, images, pages. */
  readonly done: number
  /** Bytes of blob or list content moved. */
  readonly bytes: number
  /** Processor time the generator itself used in the timed section, in seconds. */
  readonly cpuSeconds: number
  /** Digests of what was pushed, where the job pushes. */
  readonly digests?: readonly string[]
  /** Milliseconds for each unit, sorted, where the job records them. */
  readonly latencies?: readonly number[]
  /** The same in the order of their ends, each with its end (milliseconds since 1970). */
  readonly moments?: readonly Moment[]
  /** How often each status came, where the job takes several. */
  readonly statuses?: Readonly<Record<string, number>>
}

/** The name of the n-th tag that a {@link TagsJob} sets; all have one length, so that text order is number order. */
export function tagName(n: number): string {
  return `v${String(n).padStart(6, '0')}`
}
