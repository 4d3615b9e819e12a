import type { Config } from '../../config/schema.js'

/** What the primary process tells a worker. */
export type ToWorker =
  | { readonly type: 'start'; readonly config: Config; readonly name: string }
  | { readonly type: 'stop' }
  | { readonly type: 'metrics'; readonly id: number; readonly contentType: string; readonly text: string }

/** What a worker tells the primary process. */
export type FromWorker =
  /** It listens to messages from now on. */
  | { readonly type: 'hello' }
  | { readonly type: 'failed'; readonly message: string }
  | { readonly type: 'metrics'; readonly id: number }
