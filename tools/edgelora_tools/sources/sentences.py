"""Plain sentences in many languages: what a language model of any of them should find likely."""

from __future__ import annotations

from collections.abc import Mapping

SENTENCES: Mapping[str, str] = {
    "English": (
        "Once upon a time there was a little girl who lived with her mother in a small house near the forest. "
        "One day she went to the park and saw a big dog. She was very happy and wanted to play with it, but "
        "the dog ran away."
    ),
    "English, of adults": (
        "The city lies on the river, and most of its people work in the harbour. In the summer of last year "
        "the council said that a new bridge would be built, because the old one was no longer safe for heavy "
        "traffic."
    ),
    "a program": (
        "def add(first, second):\n    return first + second\n\n\nfor i in range(10):\n    print(i, add(i, 1))\n\nif "
        "__name__ == '__main__':\n    import sys\n\n    sys.exit(main(sys.argv[1:]))\n"
    ),
    "Arabic": (
        "كان يا ما كان في قديم الزمان، كانت هناك فتاة صغيرة تعيش مع أمها في بيت صغير بالقرب من الغابة. وفي "
        "يوم من الأيام ذهبت إلى المدينة."
    ),
    "Chinese": ("从前有一个小女孩，她和妈妈住在森林边的一座小房子里。有一天，她去看望她的祖母，路上遇到了一只狗。"),
    "French": (
        "Il était une fois une petite fille qui vivait avec sa mère dans une petite maison près de la forêt. "
        "Un jour, elle est allée en ville pour voir sa grand-mère."
    ),
    "German": (
        "Es war einmal ein kleines Mädchen, das mit seiner Mutter in einem kleinen Haus am Wald lebte. Eines "
        "Tages ging es in die Stadt, um seine Großmutter zu besuchen."
    ),
    "Hindi": ("एक समय की बात है, एक छोटी लड़की अपनी माँ के साथ जंगल के पास एक छोटे से घर में रहती थी। एक दिन वह शहर गई।"),
    "Indonesian": (
        "Pada suatu hari ada seorang anak perempuan yang tinggal bersama ibunya di sebuah rumah kecil di "
        "dekat hutan. Dia pergi ke kota untuk bertemu dengan neneknya."
    ),
    "Italian": (
        "C'era una volta una bambina che viveva con sua madre in una piccola casa vicino al bosco. Un giorno "
        "andò in città per trovare sua nonna."
    ),
    "Japanese": (
        "昔々、小さな女の子がお母さんと一緒に森の近くの小さな家に住んでいました。ある日、女の子は町へ行きました。"
    ),
    "Korean": (
        "옛날 옛적에 한 소녀가 어머니와 함께 숲 근처의 작은 집에 살고 있었습니다. 어느 날 소녀는 할머니를"
        " 만나러 갔습니다."
    ),
    "Polish": (
        "Dawno temu była sobie mała dziewczynka, która mieszkała z mamą w małym domu w pobliżu lasu. Pewnego "
        "dnia poszła do miasta, żeby odwiedzić babcię."
    ),
    "Portuguese": (
        "Era uma vez uma menina que vivia com a mãe numa pequena casa perto da floresta. Um dia, ela foi "
        "à cidade para ver a avó."
    ),
    "Russian": (
        "Жила-была девочка, которая жила с мамой в маленьком доме у леса. Однажды она пошла в город, чтобы "
        "навестить свою бабушку."
    ),
    "Spanish": (
        "Había una vez una niña que vivía con su madre en una casa pequeña cerca del bosque. Un día fue a "
        "la ciudad para ver a su abuela."
    ),
    "Turkish": (
        "Bir zamanlar annesiyle birlikte ormanın yakınındaki küçük bir evde yaşayan küçük bir kız varmış. "
        "Bir gün şehre gitmiş ve büyükannesini görmüş."
    ),
    "Vietnamese": (
        "Ngày xưa có một cô bé sống với mẹ trong một ngôi nhà nhỏ gần khu rừng. Một ngày nọ, cô bé đi vào "
        "thành phố để thăm bà."
    ),
}
