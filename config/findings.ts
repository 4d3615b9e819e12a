import type { Setting } from './schema.js'

/** A value as somebody wrote it; `place` names the setting and where it was written. */
export interface Written {
  readonly setting: Setting
  readonly place: string
  readonly value: unknown
  /** The file that it was written in, if any. */
  readonly file?: string
  /** Lines of the names within the value, by their paths from it, such as `[0].url`. */
  readonly lines?: ReadonlyMap<string, number>
}

/** What the sources hold. */
export interface Findings {
  /** In growing order of precedence. */
  readonly written: Written[]
  readonly faults: string[]
  /** Settings of which something is written that cannot be told. */
  readonly unreadable: Set<string>
  /** Nobody knows what the file would have set. */
  fileLost: boolean
}
