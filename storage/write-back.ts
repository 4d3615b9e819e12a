import type { FileHandle } from 'node:fs/promises'

/** Bytes after which the disk is set to work while more come in. Measured: see bench/README.md. */
const step = 16 * 1024 * 1024

/**
 * Syncs a file while it grows, so that the sync at its end finds little left to do: the disk and the network
 * work at the same time.
 */
export class WriteBack {
  readonly #file: FileHandle
  #started: number
  #running: Promise<void> | undefined
  #failure: { readonly error: unknown } | undefined

  /** @param position where the writing begins */
  constructor(file: FileHandle, position: number) {
    this.#file = file
    this.#started = position
  }

  /** Hears how far the file is written, and may begin to sync it. */
  reached(position: number): void {
    if (this.#running !== undefined || position - this.#started < step) return
    this.#started = position
    this.#running = this.#file
      .datasync()
      .catch((error: unknown) => {
        this.#failure = { error }
      })
      .finally(() => {
        this.#running = undefined
      })
  }

  /** Resolves when everything written is on the disk. @throws what any of the syncs threw: the file is lost */
  async finish(): Promise<void> {
    await this.settle()
    if (this.#failure !== undefined) throw this.#failure.error
    await this.#file.datasync()
  }

  /** Resolves when no sync runs any more, so that the file can be closed. */
  async settle(): Promise<void> {
    await this.#running
  }
}
