/**
 * Readers that hear of every write. A crowd hears of several at once, in milliseconds: each write would cost a read
 * and a write for every one of them.
 */
const fewReaders = 4
const crowdInterval = 40

/** Bytes that are not shown to anybody before the whole blob has been found right: no wrong blob is ever complete. */
const heldBack = 1

/** How far a fill has got, for those who wait for its bytes. */
export class FillProgress {
  readonly #twoSizes: () => Error
  readonly #waiting = new Set<() => void>()
  #telling: NodeJS.Timeout | undefined
  #size: number | undefined
  #stored = 0
  /** Whether all bytes have come and have the digest: from then on they may be shown, durable or not. */
  #isRight = false
  #outcome: { readonly error: Error | undefined } | undefined

  /** @param twoSizes makes the error for an upstream that says one size and then another */
  constructor(twoSizes: () => Error) {
    this.#twoSizes = twoSizes
  }

  /** Bytes of the blob; undefined as long as nobody knows. */
  get knownSize(): number | undefined {
    return this.#size
  }

  /** Bytes that are stored by now, those of earlier tries included. */
  get storedBytes(): number {
    return this.#stored
  }

  /** Whether the fill has ended, well or not. */
  get isEnded(): boolean {
    return this.#outcome !== undefined
  }

  /** What ended the fill, if that was a failure. */
  get failure(): Error | undefined {
    return this.#outcome?.error
  }

  /** Bytes of the blob, as soon as they are known. @throws what ended the fill before */
  async size(): Promise<number> {
    for (;;) {
      if (this.#size !== undefined) return this.#size
      if (this.failure !== undefined) throw this.failure
      await this.#change()
    }
  }

  /** Resolves when the bytes have been found right. @throws what ended the fill */
  async right(): Promise<void> {
    while (!this.#isRight && !this.isEnded) await this.#change()
    if (!this.#isRight && this.failure !== undefined) throw this.failure
  }

  /**
   * Waits until more than `position` bytes may be shown.
   * @returns how many may be shown
   * @throws what ended the fill
   */
  async reached(position: number): Promise<number> {
    for (;;) {
      if (!this.#isRight && this.failure !== undefined) throw this.failure
      const shown = this.#shown()
      if (shown > position || this.isEnded) return shown
      await this.#change()
    }
  }

  #shown(): number {
    if (this.isEnded) return this.#size ?? this.#stored
    if (this.#size === undefined) return 0
    return this.#isRight ? this.#size : Math.min(this.#stored, this.#size - heldBack)
  }

  /** @throws the error for two sizes when clients were told another one: what they got would look complete and be wrong */
  learnSize(size: number): void {
    if (this.#size !== undefined && this.#size !== size) throw this.#twoSizes()
    this.#size = size
    this.#tell()
  }

  /** @returns whether it is news */
  learnStored(stored: number): boolean {
    if (stored === this.#stored) return false
    this.#stored = stored
    if (this.#waiting.size <= fewReaders) this.#tell()
    else this.#telling ??= setTimeout(() => this.#tell(), crowdInterval)
    return true
  }

  learnRight(): void {
    this.#isRight = true
    this.#tell()
  }

  /** The fill has ended. @param error undefined when it has ended well */
  end(error: Error | undefined): void {
    this.#outcome = { error }
    this.#tell()
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.add(resolve))
  }

  #tell(): void {
    clearTimeout(this.#telling)
    this.#telling = undefined
    const waiting = [...this.#waiting]
    this.#waiting.clear()
    for (const resolve of waiting) resolve()
  }
}
